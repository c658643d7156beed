"""The reversible steps by which an engine leaves the GPU: applied in order, undone in reverse to come back.

Here are those that any process can take. Steps that an engine takes itself are in the module of its kind. To add one,
write its class there, and return it from ``Engine.steps``.
"""

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.states import Asleep, Cold
from llmux.engines.calls import Endpoints

T = TypeVar("T")


class EngineControls(Protocol):
    """What a step may do to a running engine.

    The coroutines raise EngineFailure, after which the engine is in an unknown state and must be stopped.
    """

    @property
    def endpoints(self) -> Endpoints:
        """For calls within ``perform``."""

    @property
    def applied(self) -> tuple["Step", ...]:
        """The steps taken so far and not undone."""

    @property
    def state(self) -> object:
        """What ``Engine.prepare_start`` returned for this start."""

    async def fits_into_host_memory(self) -> bool:
        """Whether the host has memory for the weights."""

    async def perform(self, work: Coroutine[Any, Any, T], what: str) -> T:
        """Do some work and return its result; it fails when the engine ends or is to be given up.

        ``what`` names it in errors.
        """

    async def dump(self, *, keep_requests: bool) -> str | None:
        """Put the engine into an image; returns why that was not possible if the engine runs on as before."""

    async def stop(self) -> None:
        """End the engine; raises ProcessStuck if it does not die."""

    def fail(self, reason: str) -> None:
        """Raise EngineFailure."""

    def note_fallback(self, what: str, reason: str) -> None:
        """Record that something else is done than was asked."""


class Step(Protocol):
    """One step; ``str(step)`` is how an image's manifest names it, and ``Engine.parse_step`` reads that."""

    @property
    def keeps_requests(self) -> bool:
        """Whether the engine's requests are suspended with it."""

    @property
    def leaves_process(self) -> Process:
        """What the engine's process is after the step."""

    @property
    def leaves_weights(self) -> Weights | None:
        """Where the weights are after the step; None if it does not change that."""

    async def apply(self, engine: EngineControls) -> tuple["Step", ...]:
        """Take the step, or what replaces it where it is not possible; returns the steps that were really taken.

        Raises EngineFailure, ProcessStuck.
        """

    async def undo(self, engine: EngineControls) -> None:
        """Reverse the step; raises EngineFailure."""


@dataclass(frozen=True, slots=True)
class DumpProcess:
    """The engine is put into an image on disk and ends. A restore precedes the undoing of all steps before this one."""

    keeps_requests: bool = False
    otherwise: Step | None = None
    """Taken where no image can be made; None: the engine is stopped."""
    leaves_process: ClassVar[Process] = Process.CHECKPOINT
    leaves_weights: ClassVar[None] = None

    def __str__(self) -> str:
        return "dump"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        reason = await engine.dump(keep_requests=self.keeps_requests)
        if reason is None:
            return (self,)
        if self.otherwise is None:
            engine.fail(f"no image was made: {reason}")
            return ()
        engine.note_fallback("no image was made, the engine sleeps instead", reason)
        return await self.otherwise.apply(engine)

    async def undo(self, engine: EngineControls) -> None:
        pass


@dataclass(frozen=True, slots=True)
class StopProcess:
    """The engine ends; only a cold start brings it back."""

    keeps_requests: ClassVar[bool] = False
    leaves_process: ClassVar[Process] = Process.STOP
    leaves_weights: ClassVar[None] = None

    def __str__(self) -> str:
        return "stop"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        await engine.stop()
        return (self,)

    async def undo(self, engine: EngineControls) -> None:
        pass


def residency_after(eviction: Eviction, applied: Iterable[Step]) -> Asleep | Cold:
    """Where an engine is that was to leave by ``eviction``, after the steps that were really taken."""
    weights, process = eviction.weights, Process.KEEP_RUNNING
    for step in applied:
        process = step.leaves_process
        weights = step.leaves_weights or weights
    return Cold() if process is Process.STOP else Asleep(Eviction(weights, process))
