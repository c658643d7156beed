"""Evictions as lists of reversible steps: applied in order to leave, undone in reverse to come back."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from llmux.core.eviction import Eviction, Process, Weights


class SleepLevel(IntEnum):
    """vLLM's sleep levels: what its ``/sleep`` does with the weights."""

    OFFLOAD = 1
    DISCARD = 2


@dataclass(frozen=True, slots=True)
class Sleep:
    """The engine itself gives up its GPU memory and goes on running; requests that it keeps go on when it is awake."""

    level: SleepLevel
    keeps_requests: bool = False


@dataclass(frozen=True, slots=True)
class StopProcess:
    """The engine ends; coming back is a cold start, so nothing is left to undo."""


@dataclass(frozen=True, slots=True)
class PauseRequests:
    """The engine's scheduler is paused with its requests kept."""


@dataclass(frozen=True, slots=True)
class DumpProcess:
    """The engine is put into an image on disk and ends; coming back is a restore."""


Step: TypeAlias = Sleep | StopProcess | PauseRequests | DumpProcess

_LEVELS = {Weights.OFFLOAD: SleepLevel.OFFLOAD, Weights.DISCARD: SleepLevel.DISCARD}


class UnsupportedEviction(Exception):
    """An eviction whose steps do not exist yet."""

    def __init__(self, eviction: Eviction) -> None:
        super().__init__(
            f"the eviction '{eviction}' is not available yet; use offload or discard with keep_running, "
            "any with checkpoint, or any with stop"
        )


def steps_of(eviction: Eviction, *, freeze: bool = False) -> tuple[Step, ...]:
    """The steps by which a model leaves the GPU, in order; raises UnsupportedEviction.

    ``freeze``: it has requests that are to be suspended with it.
    """
    match eviction.process:
        case Process.STOP:
            return (StopProcess(),)
        case Process.KEEP_RUNNING:
            return _weights_steps(eviction, freeze=freeze)
        case Process.CHECKPOINT:
            # A dump stops the engine wherever it is; paused before, it does not find its requests timed out after.
            pause = (PauseRequests(),) if freeze and eviction.weights is Weights.RETAIN else ()
            return (*pause, *_weights_steps(eviction, freeze=freeze), DumpProcess())
        case Process.CUDA_SUSPEND:
            raise UnsupportedEviction(eviction)


def as_applied(eviction: Eviction, applied: Iterable[Step]) -> Eviction:
    """The eviction with what has really become of the weights."""
    levels = [step.level for step in applied if isinstance(step, Sleep)]
    if not levels:
        return eviction
    weights = Weights.DISCARD if SleepLevel.DISCARD in levels else Weights.OFFLOAD
    return Eviction(weights, eviction.process)


def _weights_steps(eviction: Eviction, *, freeze: bool) -> tuple[Step, ...]:
    level = _LEVELS.get(eviction.weights)
    return () if level is None else (Sleep(level, keeps_requests=freeze),)
