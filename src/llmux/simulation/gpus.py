"""The virtual GPU as llmux sees a real one: for engines that were told of a ledger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmux.errors import GpusUnreadable
from llmux.gpus.memory import GpuMemory, GpuProcess, GpuReader, StartNeed
from llmux.simulation.engine.options import parse
from llmux.simulation.ledger import Ledger, LedgerError, LedgerSnapshot

LEDGER_FLAG = "--sim-gpu-ledger"
LEDGER_VARIABLE = "LLMUX_SIM_LEDGER"


@dataclass(frozen=True, slots=True)
class LedgerReader:
    """Reads one ledger."""

    path: Path

    def read_memory(self) -> tuple[GpuMemory, ...]:
        book = self._read()
        return (GpuMemory(str(self.path), book.capacity_mib, book.used_mib),)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        claims = sorted(self._read().claims, key=lambda claim: -claim.mib)
        return tuple(GpuProcess(claim.pid, claim.model or _name(claim.pid), claim.mib) for claim in claims if claim.mib)

    def _read(self) -> LedgerSnapshot:
        try:
            return Ledger(self.path).snapshot()
        except LedgerError as error:
            raise GpusUnreadable(str(error)) from error


def find_virtual_gpu(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[GpuReader, StartNeed | None] | None:
    """The reader for an engine started so, and what it needs to start; None where it has no virtual GPU."""
    if LEDGER_VARIABLE not in environment and not any(word.partition("=")[0] == LEDGER_FLAG for word in arguments):
        return None
    try:
        options, _, _ = parse(["--model", "any", *arguments], environment)
    except SystemExit:
        # The engine will refuse its command line itself, and say why.
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
