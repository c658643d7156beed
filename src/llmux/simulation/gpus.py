"""Lets llmux read a ledger as it reads a GPU, through the hook of ``llmux.gpus.hook``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmux.errors import GpusUnreadable
from llmux.gpus.memory import GpuMemory, GpuProcess, GpuReader, StartNeed
from llmux.simulation.engine.options import parse
from llmux.simulation.ledger import Ledger, LedgerError, LedgerSnapshot

HOOK = f"{__name__}:find_virtual_gpu"
"""The value of LLMUX_GPU_READER under which llmux serves simulated engines."""
LEDGER_FLAG = "--sim-gpu-ledger"
LEDGER_VARIABLE = "LLMUX_SIM_LEDGER"


@dataclass(frozen=True, slots=True)
class LedgerReader:
    """A GpuReader for the one virtual GPU of a ledger."""

    path: Path

    def read_memory(self) -> tuple[GpuMemory, ...]:
        snapshot = self._snapshot()
        return (GpuMemory(str(self.path), snapshot.capacity_mib, snapshot.used_mib),)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        held = sorted(self._snapshot().allocations, key=lambda allocation: -allocation.mib)
        return tuple(GpuProcess(one.pid, one.model or _name(one.pid), one.mib) for one in held if one.mib)

    def _snapshot(self) -> LedgerSnapshot:
        try:
            return Ledger(self.path).snapshot()
        except LedgerError as error:
            raise GpusUnreadable(str(error)) from error


def find_virtual_gpu(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[GpuReader, StartNeed | None] | None:
    """The virtual GPU of an engine with this command line and what it needs to start; None for an engine without one.

    The command line is parsed as the simulated engine's only if it, or the environment, names a ledger.
    """
    if LEDGER_VARIABLE not in environment and not any(word.partition("=")[0] == LEDGER_FLAG for word in arguments):
        return None
    try:
        options, _, _ = parse(["--model", "any", *arguments], environment)
    except SystemExit:
        # The engine rejects its command line itself when it is started, with the reason.
        return None
    if not options.ledger_path:
        return None
    mib = options.gpu_memory_mib
    need = StartNeed(share=options.gpu_memory_utilization) if mib is None else StartNeed(mib=mib)
    return LedgerReader(Path(options.ledger_path)), need


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "unknown"
