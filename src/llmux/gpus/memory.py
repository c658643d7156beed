"""What is known of the memory of GPUs, whoever reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU's memory at one moment."""

    gpu: str
    """Its name for the operator."""
    total_mib: int
    used_mib: int

    @property
    def free_mib(self) -> int:
        """What could be taken now."""
        return self.total_mib - self.used_mib


@dataclass(frozen=True, slots=True)
class Holder:
    """A process and what it holds; None where the driver does not say."""

    pid: int
    name: str
    mib: int | None

    def __str__(self) -> str:
        amount = "unknown" if self.mib is None else f"{self.mib} MiB"
        return f"{self.name} (pid {self.pid}, {amount})"


class GpuReader(Protocol):
    """Reads the GPUs that one engine sees, in their order; both may take a moment."""

    def read_memory(self) -> tuple[GpuMemory, ...]:
        """Each GPU's memory; raises GpusUnreadable."""

    def read_holders(self) -> tuple[Holder, ...]:
        """The processes that hold memory of these GPUs; raises GpusUnreadable."""


@dataclass(frozen=True, slots=True)
class StartNeed:
    """What an engine wants to find free when it starts: a share of each of its GPUs, or so many MiB of them."""

    share: float = 0.0
    mib: int = 0

    def on(self, gpu: GpuMemory) -> int:
        """In MiB of this GPU."""
        return max(self.mib, int(self.share * gpu.total_mib))


def total_used_mib(memory: Sequence[GpuMemory]) -> int:
    """What is used of all of them together."""
    return sum(gpu.used_mib for gpu in memory)
