"""The reversible steps by which an engine leaves the GPU: applied in order, undone in reverse to come back.

To add a step, write its class here and add it to ``steps_of`` and ``_BY_TEXT``; what it does to the engine goes into
``EngineControls``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import ClassVar, Protocol

from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.states import Asleep, Cold
from llmux.errors import UnsupportedEviction


class SleepLevel(IntEnum):
    """What vLLM's ``/sleep`` does with the weights."""

    OFFLOAD = 1
    DISCARD = 2


class EngineControls(Protocol):
    """What a step may do to a running engine.

    The coroutines raise EngineFailure, after which the engine is in an unknown state and must be stopped.
    """

    @property
    def is_asleep(self) -> bool:
        """Whether a ``Sleep`` has been applied and not been undone."""

    async def fits_into_host_memory(self) -> bool:
        """Whether the host has memory for the weights."""

    async def sleep(self, level: SleepLevel, *, keep_requests: bool) -> None:
        """Let the engine release its GPU memory."""

    async def wake_up(self, level: SleepLevel, *, keep_requests: bool) -> None:
        """Undo ``sleep``, called with the same arguments."""

    async def pause(self) -> None:
        """Stop the engine's scheduler, with all requests kept."""

    async def resume(self) -> None:
        """Undo ``pause``."""

    async def dump(self, *, keep_requests: bool) -> str | None:
        """Put the engine into an image; returns why that was not possible if the engine runs on as before."""

    async def stop(self) -> None:
        """End the engine; raises ProcessStuck if it does not die."""

    def note_fallback(self, what: str, reason: str) -> None:
        """Record that something else is done than was asked."""


class Step(Protocol):
    """One step; ``str(step)`` is how an image's manifest names it, and ``parse_step`` reads that."""

    @property
    def keeps_requests(self) -> bool:
        """Whether the engine's requests are suspended with it."""

    @property
    def leaves_process(self) -> Process:
        """What the engine's process is after the step."""

    async def apply(self, engine: EngineControls) -> tuple["Step", ...]:
        """Take the step, or what replaces it where it is not possible; returns the steps that were really taken.

        Raises EngineFailure, ProcessStuck.
        """

    async def undo(self, engine: EngineControls) -> None:
        """Reverse the step; raises EngineFailure."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """The engine itself releases its GPU memory and keeps running."""

    level: SleepLevel
    keeps_requests: bool = False
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING

    def __str__(self) -> str:
        return f"sleep {self.level.value}{' keep' if self.keeps_requests else ''}"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if engine.is_asleep:
            # A second /sleep is answered with 200 and does nothing: a sleeping engine can only be dumped or stopped.
            return ()
        step = self
        if self.level is SleepLevel.OFFLOAD and not await engine.fits_into_host_memory():
            engine.note_fallback("the weights are discarded instead of offloaded", "too little host memory for them")
            step = replace(self, level=SleepLevel.DISCARD)
        await engine.sleep(step.level, keep_requests=step.keeps_requests)
        return (step,)

    async def undo(self, engine: EngineControls) -> None:
        await engine.wake_up(self.level, keep_requests=self.keeps_requests)


@dataclass(frozen=True, slots=True)
class PauseRequests:
    """The engine's scheduler is paused with its requests kept."""

    keeps_requests: ClassVar[bool] = True
    leaves_process: ClassVar[Process] = Process.KEEP_RUNNING

    def __str__(self) -> str:
        return "pause"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        if engine.is_asleep:
            return ()
        await engine.pause()
        return (self,)

    async def undo(self, engine: EngineControls) -> None:
        await engine.resume()


@dataclass(frozen=True, slots=True)
class DumpProcess:
    """The engine is put into an image on disk and ends. A restore precedes the undoing of all steps before this one."""

    keeps_requests: bool = False
    leaves_process: ClassVar[Process] = Process.CHECKPOINT

    def __str__(self) -> str:
        return "dump"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        reason = await engine.dump(keep_requests=self.keeps_requests)
        if reason is None:
            return (self,)
        engine.note_fallback("no image was made, the engine sleeps instead", reason)
        return await Sleep(SleepLevel.OFFLOAD, self.keeps_requests).apply(engine)

    async def undo(self, engine: EngineControls) -> None:
        pass


@dataclass(frozen=True, slots=True)
class StopProcess:
    """The engine ends; only a cold start brings it back."""

    keeps_requests: ClassVar[bool] = False
    leaves_process: ClassVar[Process] = Process.STOP

    def __str__(self) -> str:
        return "stop"

    async def apply(self, engine: EngineControls) -> tuple[Step, ...]:
        await engine.stop()
        return (self,)

    async def undo(self, engine: EngineControls) -> None:
        pass


_LEVELS = {Weights.OFFLOAD: SleepLevel.OFFLOAD, Weights.DISCARD: SleepLevel.DISCARD}
_EVERY_STEP: tuple[Step, ...] = (
    *(Sleep(level, keeps_requests) for level in SleepLevel for keeps_requests in (False, True)),
    PauseRequests(),
    DumpProcess(),
    StopProcess(),
)
_BY_TEXT = {str(step): step for step in _EVERY_STEP}


def parse_step(text: str) -> Step:
    """The step that ``str(step)`` gives; raises ValueError."""
    try:
        return _BY_TEXT[text]
    except KeyError:
        raise ValueError(f"no step is called {text!r}") from None


def steps_of(eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
    """The steps by which a model leaves the GPU, in order; raises UnsupportedEviction.

    ``freeze``: the engine has requests that are to be suspended with it.
    """
    level = _LEVELS.get(eviction.weights)
    sleep = () if level is None else (Sleep(level, keeps_requests=freeze),)
    match eviction.process:
        case Process.STOP:
            return (StopProcess(),)
        case Process.KEEP_RUNNING:
            return sleep
        case Process.CHECKPOINT:
            # A dump freezes the engine at any point. Paused before, it does not find its requests timed out afterwards.
            pause = (PauseRequests(),) if freeze and level is None else ()
            return (*pause, *sleep, DumpProcess(keeps_requests=freeze))
        case Process.CUDA_SUSPEND:
            raise UnsupportedEviction(eviction)


def residency_after(eviction: Eviction, applied: Iterable[Step]) -> Asleep | Cold:
    """Where an engine is that was to leave by ``eviction``, after the steps that were really taken."""
    weights, process = eviction.weights, Process.KEEP_RUNNING
    for step in applied:
        process = step.leaves_process
        if isinstance(step, Sleep):
            weights = Weights.DISCARD if step.level is SleepLevel.DISCARD else Weights.OFFLOAD
    return Cold() if process is Process.STOP else Asleep(Eviction(weights, process))
