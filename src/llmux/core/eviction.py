"""How a model leaves the GPU: what happens to its weights, and what happens to its process."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Weights(StrEnum):
    """Where the weights go while the model is off the GPU."""

    RETAIN = "retain"
    OFFLOAD = "offload"
    DISCARD = "discard"


class Process(StrEnum):
    """What happens to the engine's process while the model is off the GPU."""

    KEEP_RUNNING = "keep_running"
    CUDA_SUSPEND = "cuda_suspend"
    CHECKPOINT = "checkpoint"
    STOP = "stop"


_PROCESS_DEPTH = {process: depth for depth, process in enumerate(Process)}
_WEIGHTS_DEPTH = {weights: depth for depth, weights in enumerate(Weights)}


class Drain(StrEnum):
    """What a switch does about requests in flight."""

    WAIT = "wait"
    FREEZE = "freeze"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Eviction:
    """One cell of the table weights × process."""

    weights: Weights
    process: Process

    @property
    def keeps_process(self) -> bool:
        """Whether the model can be woken afterwards without a cold start."""
        return self.process is not Process.STOP

    @property
    def stays_in_memory(self) -> bool:
        """Whether the process goes on holding host memory: it neither ends nor goes into an image on disk."""
        return self.process in (Process.KEEP_RUNNING, Process.CUDA_SUSPEND)

    @property
    def depth(self) -> tuple[int, int]:
        """Orders evictions by how little they keep: first of the process, then of the weights."""
        return _PROCESS_DEPTH[self.process], _WEIGHTS_DEPTH[self.weights]

    @property
    def leaves_the_gpu(self) -> bool:
        """Whether the weights leave it: with a running process that retains them, at most the KV cache does."""
        return self.weights is not Weights.RETAIN or self.process is not Process.KEEP_RUNNING

    def is_deeper_than(self, other: Self) -> bool:
        """Whether a model that left by ``other`` can go on to this without being woken first."""
        return self.depth[0] > other.depth[0]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``weights+process``; raises ``ValueError`` naming the allowed words."""
        weights, separator, process = text.partition("+")
        if not separator:
            raise ValueError(f"{text!r} is not of the form weights+process")
        return cls(Weights(weights), Process(process))

    def __str__(self) -> str:
        return f"{self.weights}+{self.process}"


STOP = Eviction(Weights.RETAIN, Process.STOP)
