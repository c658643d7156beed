"""One engine process and the steps taken on it: how it leaves the GPU, and how that is undone."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from llmux.access import Upstream
from llmux.checkpoints.dumping import ImageFacts
from llmux.core.eviction import STOP, Eviction, Process
from llmux.core.states import Asleep, Cold
from llmux.engines.steps import Step, residency_after
from llmux.errors import CriuUnusable, DumpFailed, FailureReason, UnsupportedEviction
from llmux.instances.canary import Canary
from llmux.instances.checkpoint_store import CheckpointStore
from llmux.instances.control_calls import EngineEndpoints
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.outcomes import EvictOutcome
from llmux.instances.process import EngineProcess
from llmux.instances.scope import EngineFailure, EngineScope

log = structlog.get_logger("engine")

T = TypeVar("T")

KILL_SECONDS = 10.0
"""From SIGKILL to the end of the last process; one that takes longer hangs in the kernel, usually in a driver call."""


@dataclass(slots=True, kw_only=True)
class RunningEngine:
    """An engine from its start or restore until it has ended or is in an image. Implements the steps' controls."""

    spec: EngineSpec
    endpoints: EngineEndpoints
    process: EngineProcess
    scope: EngineScope
    canary: Canary
    store: CheckpointStore | None
    fingerprint: str
    """How the process was started."""
    on_leaving: Callable[[Upstream, Process], None]
    state: object = None
    """What the kind of engine remembers of this start."""
    can_freeze: bool = False
    applied: tuple[Step, ...] = ()
    """The steps taken and not yet undone."""
    _eviction: Eviction = field(init=False)
    """The eviction under way, or the last one."""
    _fallback: str | None = field(default=None, init=False)

    async def leave(self, eviction: Eviction, *, freeze: bool) -> EvictOutcome:
        """Take the engine off the GPU; a step that fails is replaced, in the end by stopping it. Raises ProcessStuck.

        The process has ended unless the outcome is ``Asleep`` by an eviction that keeps it running.
        """
        self._eviction, self._fallback = eviction, None
        try:
            residency = await self._take_steps(eviction, freeze=freeze)
        except (EngineFailure, UnsupportedEviction) as failure:
            self.note_fallback("eviction failed, stopping the engine instead", str(failure))
            await self.stop()
            residency = Cold()
        return EvictOutcome(residency, self._fallback)

    async def come_back(self) -> None:
        """Undo the steps taken, the last one first; raises EngineFailure."""
        for step in reversed(self.applied):
            await step.undo(self)
        self.applied = ()

    @property
    def fallback(self) -> str | None:
        """What was done in the last eviction instead of what was asked, and why."""
        return self._fallback

    @property
    def has_frozen(self) -> bool:
        """Whether requests are suspended with the engine."""
        return any(step.keeps_requests for step in self.applied)

    async def _take_steps(self, eviction: Eviction, *, freeze: bool) -> Asleep | Cold:
        if eviction.process is Process.CHECKPOINT and not freeze and self.store is not None:
            image = await self.store.find_reusable(self.fingerprint, eviction, self.canary.baseline)
            if image is not None:
                # The image may be older than what the engine keeps when it is stopped.
                for step in self.spec.engine.steps(STOP):
                    await step.apply(self)
                self.store.set_current(image)
                return Asleep(eviction)
        for step in self.spec.engine.steps(eviction, freeze=freeze):
            self.applied += await step.apply(self)
        return residency_after(eviction, self.applied)

    # The controls of the steps.

    async def fits_into_host_memory(self) -> bool:
        return await asyncio.to_thread(self.spec.fits_into_host_memory)

    async def perform(self, work: Coroutine[Any, Any, T], what: str) -> T:
        return await self.scope.run(work, None, what)

    def fail(self, reason: str) -> None:
        raise EngineFailure(FailureReason(reason))

    async def dump(self, *, keep_requests: bool) -> str | None:
        if self.store is None:
            raise EngineFailure(FailureReason("no images are configured: the section 'checkpoint' is missing"))
        self.on_leaving(self.endpoints.upstream, Process.CHECKPOINT)
        facts = ImageFacts(
            model=self.spec.model,
            port=self.endpoints.upstream.port,
            fingerprint=self.fingerprint,
            steps=tuple(map(str, self.applied)),
            eviction=self._eviction,
            has_frozen=keep_requests,
            argv=self.spec.argv,
            canary=self.canary.baseline,
        )
        try:
            await self.scope.run(self.store.dump(self.process, facts), None, "the dump")
        except CriuUnusable as failure:
            return str(failure)
        except DumpFailed as failure:
            if failure.engine_runs:
                return str(failure)
            raise EngineFailure(FailureReason(str(failure))) from failure
        return None

    async def stop(self) -> None:
        self.on_leaving(self.endpoints.upstream, Process.STOP)
        seconds = min(self.spec.stop_timeout_seconds, self.spec.engine.max_stop_seconds)
        await self.process.stop(seconds, KILL_SECONDS)

    def note_fallback(self, what: str, reason: str) -> None:
        self._fallback = f"{what}: {reason}"
        log.warning(what, model=self.spec.model, reason=reason)
