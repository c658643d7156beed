"""The reversible steps by which an engine leaves the GPU: applied in order, undone in reverse to come back.

Here are those that any process can take. Steps that an engine takes itself are in the module of its kind. To add one,
write its class there, and return it from ``Engine.steps``.
"""

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.states import Asleep, Cold
from llmux.engines.calls import Endpoints, RankCalls

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

    async def suspend_gpu(self) -> str | None:
        """Move the GPU memory of all its processes to host memory, which stops them at their next use of CUDA.

        Returns why that was not possible if the engine runs on as before.
        """

    async def resume_gpu(self) -> None:
        """Undo ``suspend_gpu``, also where that has been done by somebody else."""

    async def must_suspend_before_dump(self) -> bool:
        """Whether it uses a GPU, and criu has no plugin that would suspend it."""

    async def take_back(self) -> None:
        """Undo the step that was taken last."""

    async def dump(self, *, keep_requests: bool) -> str | None:
        """Put the engine into an image; returns why that was not possible if the engine runs on as before."""

    async def stop(self) -> None:
        """End the engine; raises ProcessStuck if it does not die."""

    def fail(self, reason: str) -> NoReturn:
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
        if not is_suspended(engine) and await engine.must_suspend_before_dump():
            # It could not be suspended, and another step was taken instead.
            return ()
        reason = await engine.dump(keep_requests=self.keeps_requests)
        if reason is None:
            return (self,)
        if is_suspended(engine):
            # Its GPUs are free all the same, and it must not be called as it is.
            engine.note_fallback("no image was made, the engine stays suspended", reason)
            return ()
        return await _instead(engine, self.otherwise, "no image was made", reason)

    async def undo(self, engine: EngineControls) -> None:
        pass


@dataclass(frozen=True, slots=True)
class SuspendGpu:
    """The process stays, its GPU memory moves to host memory. Until that is undone the engine must not be called."""

    keeps_requests: bool = False
    otherwise: Step | None = None
    """Taken where it cannot be suspended; None: the engine is stopped."""
    is_for_dump: bool = False
    """Only where criu cannot do it itself, or there is no GPU to suspend."""
    leaves_process: ClassVar[Process] = Process.CUDA_SUSPEND
    leaves_weights: ClassVar[None] = None

    def __str__(self) -> str:
        return f"suspend{' keep' if self.keeps_requests else ''}"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if is_suspended(engine) or (self.is_for_dump and not await engine.must_suspend_before_dump()):
            return ()
        reason = await engine.suspend_gpu()
        if reason is None:
            return (self,)
        return await _instead(engine, self.otherwise, "the GPU was not suspended", reason)

    async def undo(self, engine: EngineControls) -> None:
        await engine.resume_gpu()


@dataclass(frozen=True, slots=True)
class PrepareRanks:
    """The ranks of an engine on several GPUs let go of each other, which a suspend or an image would not survive."""

    calls: RankCalls
    limit_seconds: float
    keeps_requests: ClassVar[bool] = False
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING
    leaves_weights: ClassVar[None] = None

    def __str__(self) -> str:
        return f"prepare ranks {self.calls.prepare}"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if is_suspended(engine) or has_taken(engine, PrepareRanks):
            return ()
        await self._call(engine, self.calls.prepare, "preparing its ranks")
        return (self,)

    async def undo(self, engine: EngineControls) -> None:
        await self._call(engine, self.calls.restore, "connecting its ranks again")

    async def _call(self, engine: EngineControls, method: str, what: str) -> None:
        await engine.perform(engine.endpoints.post("/collective_rpc", self.limit_seconds, {"method": method}), what)


def is_suspended(engine: EngineControls) -> bool:
    """Whether its GPU is suspended, so that it cannot answer any call."""
    return has_taken(engine, SuspendGpu)


def has_taken(engine: EngineControls, *kinds: type[Step]) -> bool:
    """Whether the engine has taken a step of one of these kinds that is not undone."""
    return any(isinstance(step, kinds) for step in engine.applied)


async def _instead(engine: EngineControls, otherwise: Step | None, what: str, reason: str) -> tuple[Step, ...]:
    """Take another step in the place of one that was not possible and has left the engine running."""
    if otherwise is None:
        engine.fail(f"{what}: {reason}")
    if engine.applied and isinstance(engine.applied[-1], PrepareRanks):
        await engine.take_back()
    engine.note_fallback(f"{what}, the engine sleeps instead", reason)
    return await otherwise.apply(engine)


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
