"""The engines' own memory in the place of a GPU's, for a check without one: a hook of ``llmux.gpus.hook``.

What the marked engines of one check hold resident is what is used of a GPU as large as the machine's memory. So llmux
waits for memory, names who holds it and notices engines that keep it, by the same code as with NVML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import psutil

from llmux.gpus.memory import MIB, GpuMemory, GpuProcess, GpuReader, StartNeed

HOOK = f"{__name__}:find_resident_memory"
MARK_FLAG = "--mark"
PROGRAM = "engine.py"


@dataclass(frozen=True, slots=True)
class ResidentMemory:
    """A GpuReader over the resident memory of processes with this mark in their command line."""

    mark: str

    def read_memory(self) -> tuple[GpuMemory, ...]:
        used = sum(process.mib or 0 for process in self.read_processes())
        return (GpuMemory("resident memory", psutil.virtual_memory().total // MIB, used),)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if self.mark in words and any(word.endswith(PROGRAM) for word in words):
                    found.append(GpuProcess(process.pid, process.name(), process.memory_info().rss // MIB))
            except psutil.Error:
                continue
        return tuple(sorted(found, key=lambda process: -(process.mib or 0)))


def find_resident_memory(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[GpuReader, StartNeed | None] | None:
    """The memory of an engine that the check starts; None for any other."""
    mark = next((value for flag, value in pairwise(arguments) if flag == MARK_FLAG), None)
    return None if mark is None else (ResidentMemory(mark), None)
