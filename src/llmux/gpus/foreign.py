"""What processes that are not ours hold of the GPUs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from llmux.core.identifiers import GpuId
from llmux.gpus.memory import GpuProcess, GpuReader


@dataclass(frozen=True, slots=True)
class ForeignUse:
    """One GPU at one moment, or all together by the one on which least is free."""

    free_mib: int
    """Memory that can be allocated now."""
    processes: tuple[GpuProcess, ...]
    """Those that are not ours, largest first."""

    def missing_mib(self, reserve_mib: int) -> int:
        """What is missing to the reserve because of them: at most what they hold, where the driver tells that."""
        short_mib = max(0, reserve_mib - self.free_mib)
        amounts = [process.mib for process in self.processes]
        known = [mib for mib in amounts if mib is not None]
        return short_mib if len(known) < len(amounts) else min(short_mib, sum(known))


class ForeignUses:
    """Reads them, by GPU. To be called in a thread, one call at a time."""

    def __init__(
        self, readers: Mapping[GpuId, GpuReader], is_leased: Callable[[int], bool], own: Callable[[], Collection[int]]
    ) -> None:
        """``own`` are our engines' processes now; ``is_leased`` says whether one has a GPU lease."""
        self._readers = readers
        self._is_leased = is_leased
        self._own = own
        self._knows_own = False

    def read(self) -> Mapping[GpuId, ForeignUse]:
        """Raises GpusUnreadable.

        Empty until the driver has listed a process of ours: in a container its numbers may be others than those that we
        know, and all engines would be taken for foreign.
        """
        # Before and after: some processes end meanwhile, and others begin.
        own = set(self._own())
        read = {gpu: (reader.read_memory(), reader.read_processes()) for gpu, reader in self._readers.items()}
        own.update(self._own())
        self._knows_own = self._knows_own or any(one.pid in own for _, listed in read.values() for one in listed)
        if not self._knows_own:
            return {}
        return {
            gpu: ForeignUse(
                min((one.free_mib for one in memory), default=0),
                tuple(one for one in listed if one.pid not in own and not self._is_leased(one.pid)),
            )
            for gpu, (memory, listed) in read.items()
        }
