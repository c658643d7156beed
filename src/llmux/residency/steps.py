"""Evictions as lists of reversible steps: applied in order to leave, undone in reverse to come back."""

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
    """The engine itself gives up its GPU memory and goes on running."""

    level: SleepLevel


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
            f"the eviction '{eviction}' is not available yet; use offload or discard with "
            "keep_running, or any with stop"
        )


def steps_of(eviction: Eviction) -> tuple[Step, ...]:
    """The steps by which a model leaves the GPU, in order; raises UnsupportedEviction."""
    match eviction.process:
        case Process.STOP:
            return (StopProcess(),)
        case Process.KEEP_RUNNING:
            return (Sleep(_LEVELS[eviction.weights]),) if eviction.weights in _LEVELS else ()
        case Process.CUDA_SUSPEND | Process.CHECKPOINT:
            raise UnsupportedEviction(eviction)
