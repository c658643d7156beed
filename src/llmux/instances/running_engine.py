"""One engine process and the steps taken on it: how it leaves the GPU, and how that is undone."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import structlog

from llmux.access import Upstream
from llmux.checkpoints.facts import ImageFacts
from llmux.checkpoints.manifest import GpuIdentity
from llmux.core.eviction import STOP, Eviction, Process
from llmux.core.states import Asleep, Cold
from llmux.engines.base import Abilities
from llmux.engines.steps import Step, residency_after
from llmux.errors import CriuUnusable, DumpFailed, FailureReason, UnsupportedEviction
from llmux.gpus.cuda import CudaCallFailed, CudaCheckpoints, CudaUnusable
from llmux.gpus.cuda_processes import candidates, users_of_gpu, uses_device
from llmux.gpus.memory import GpuHeadroom
from llmux.gpus.suspension import ResumeFailed, SuspendFailed, resume, suspend
from llmux.hosts.local import available_mib, descends_from, find_descendants
from llmux.instances.canary import Canary
from llmux.instances.control_calls import EngineEndpoints
from llmux.instances.engine_spec import EngineSpec
from llmux.instances.outcomes import EvictOutcome
from llmux.instances.process import EngineProcess
from llmux.instances.scope import EngineFailure, EngineScope

if TYPE_CHECKING:
    from llmux.instances.checkpoint_store import CheckpointStore

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
    store: "CheckpointStore | None"
    headroom: GpuHeadroom
    cuda: CudaCheckpoints | None
    fingerprint: str
    """How the process was started."""
    on_leaving: Callable[[Upstream, Process], None]
    state: object = None
    """What the kind of engine remembers of this start."""
    can_freeze: bool = False
    applied: tuple[Step, ...] = ()
    """The steps taken and not yet undone."""
    suspended: tuple[int, ...] = ()
    """The processes whose GPU memory is in host memory, or is on its way there or back."""
    _eviction: Eviction = field(init=False)
    """The eviction under way, or the last one."""
    measured_evictions: set[Eviction] = field(default_factory=set, init=False)
    """The evictions after which it has been seen what the process still holds of the GPUs."""
    fallback: str | None = field(default=None, init=False)
    """What was done in the last eviction instead of what was asked, and why."""
    _must_suspend: bool | None = field(default=None, init=False)
    _weights_mib: int | None = field(default=None, init=False)
    """Read once from the disk: what the engine has loaded does not change."""

    async def find_abilities(self) -> Abilities:
        """Ask what it can do, and whether that is to freeze its requests. Raises ControlCallFailed."""
        abilities = await self.spec.engine.find_abilities(self.endpoints, freezes=self.spec.freezes)
        self.can_freeze = self.spec.freezes and abilities.keeps_requests
        return abilities

    def say_that_it_drains(self, version: str | None) -> None:
        """Log what it costs that this version cannot freeze, and what to do."""
        log.warning(
            "this engine cannot freeze its requests: a switch waits until they are answered, while others wait",
            model=self.spec.model,
            version=version,
            remedy="'llmux doctor' says which version can; 'drain: wait' says that this is meant",
        )

    async def leave(self, eviction: Eviction, *, freeze: bool) -> EvictOutcome:
        """Take the engine off the GPU; a step that fails is replaced, in the end by stopping it. Raises ProcessStuck.

        The process has ended unless the outcome is ``Asleep`` by an eviction that keeps it running.
        """
        self._eviction, self.fallback, self._must_suspend = eviction, None, None
        try:
            residency = await self._take_steps(eviction, freeze=freeze)
        except (EngineFailure, UnsupportedEviction) as failure:
            self.note_fallback("eviction failed, stopping the engine instead", str(failure))
            await self.stop()
            residency = Cold()
        return EvictOutcome(residency, self.fallback)

    async def come_back(self) -> None:
        """Undo the steps taken, the last one first; raises EngineFailure."""
        while self.applied:
            await self.take_back()

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
        if self._weights_mib is None:
            self._weights_mib = await asyncio.to_thread(self.spec.weights_mib)
        return available_mib() - self._weights_mib >= self.spec.host_memory_reserve_mib

    async def perform(self, work: Coroutine[Any, Any, T], what: str) -> T:
        return await self.scope.run(work, None, what)

    def fail(self, reason: str) -> NoReturn:
        raise EngineFailure(FailureReason(reason))

    async def take_back(self) -> None:
        await self.applied[-1].undo(self)
        self.applied = self.applied[:-1]

    async def suspend_gpu(self) -> str | None:
        if self.cuda is None:
            return "nothing here suspends CUDA processes"
        held_mib = await self.headroom.held_mib(self.is_own)
        reserve_mib = self.spec.host_memory_reserve_mib
        if held_mib and (left_mib := await asyncio.to_thread(available_mib) - held_mib) < reserve_mib:
            return (
                f"its {held_mib} MiB of GPU memory would leave {left_mib} MiB of host memory, "
                f"and host_memory_reserve_mib is {reserve_mib}"
            )
        try:
            pids = await self._find_cuda_processes()
        except (CudaUnusable, CudaCallFailed) as failure:
            return str(failure)
        gpu_count = self.spec.engine.gpu_count if self.spec.engine.has_ranks else 1
        if len(pids) < gpu_count:
            return f"{len(pids)} of its processes use CUDA, where one for each of {gpu_count} GPUs should"
        self.suspended = pids
        try:
            await self.scope.run(suspend(self.cuda, pids, self.spec.cuda_limits), None, "suspending its GPU memory")
        except SuspendFailed as failure:
            if not failure.engine_runs:
                raise EngineFailure(FailureReason(str(failure))) from failure
            self.suspended = ()
            return str(failure)
        return None

    async def resume_gpu(self) -> None:
        if self.cuda is None:
            raise EngineFailure(FailureReason("nothing here resumes CUDA processes"))
        try:
            work = resume(self.cuda, self.suspended, self.spec.cuda_limits)
            await self.scope.run(work, None, "resuming its GPU memory")
        except ResumeFailed as failure:
            raise EngineFailure(FailureReason(str(failure))) from failure
        self.suspended = ()

    async def must_suspend_before_dump(self) -> bool:
        if self._must_suspend is None:
            self._must_suspend = self.store is not None and await self._needs_suspend(self.store)
        return self._must_suspend

    async def _needs_suspend(self, store: "CheckpointStore") -> bool:
        if await asyncio.to_thread(store.has_cuda_plugin):
            return False
        holders = await self.headroom.holders()
        users = await asyncio.to_thread(lambda: users_of_gpu(self._tree(), holders))
        if not users:
            return False
        try:
            return bool(await self._find_cuda_processes())
        except (CudaUnusable, CudaCallFailed):
            # What is only said to hold memory, and has no GPU open, is not NVIDIA's driver's.
            return await asyncio.to_thread(lambda: any(map(uses_device, users)))

    async def _find_cuda_processes(self) -> tuple[int, ...]:
        """Raises CudaUnusable, CudaCallFailed."""
        if self.cuda is None:
            raise CudaUnusable("nothing here suspends CUDA processes")
        holders = await self.headroom.holders()
        names = self.spec.engine.cuda_process_names
        found = await asyncio.to_thread(lambda: candidates(self._tree(), holders, names))
        states = await asyncio.gather(*map(self.cuda.state, found), return_exceptions=True)
        for state in states:
            if isinstance(state, BaseException):
                raise state
        return tuple(pid for pid, state in zip(found, states, strict=True) if state is not None)

    def _tree(self) -> list[int]:
        shim = self.process.shim_pid
        return [] if shim is None else [one.pid for one in find_descendants(shim)]

    def is_own(self, pid: int) -> bool:
        """Whether a process is one of the engine's."""
        shim = self.process.shim_pid
        return shim is not None and descends_from(pid, shim)

    async def dump(self, *, keep_requests: bool) -> str | None:
        if self.store is None:
            raise EngineFailure(FailureReason("no images are configured: the section 'checkpoint' is missing"))
        self.on_leaving(self.endpoints.upstream, Process.CHECKPOINT)
        await self.endpoints.close_connections()
        facts = ImageFacts(
            model=self.spec.model,
            port=self.endpoints.upstream.port,
            fingerprint=self.fingerprint,
            steps=tuple(map(str, self.applied)),
            eviction=self._eviction,
            has_frozen=keep_requests,
            argv=self.spec.argv,
            canary=self.canary.baseline,
            suspended=self.suspended,
            gpus=tuple(GpuIdentity(gpu.name, gpu.gpu) for gpu in await self.headroom.read()) or None,
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
        await self.endpoints.close_connections()
        seconds = min(self.spec.stop_timeout_seconds, self.spec.engine.max_stop_seconds)
        if self.suspended:
            # Its next use of CUDA, as at its end, would wait for ever.
            seconds = 0.0
        await self.process.stop(seconds, KILL_SECONDS)

    def note_fallback(self, what: str, reason: str) -> None:
        self.fallback = f"{what}: {reason}"
        log.warning(what, model=self.spec.model, reason=reason)
