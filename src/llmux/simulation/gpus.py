"""Lets llmux read a ledger as it reads a GPU, through the hook of ``llmux.gpus.hook``."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from llmux.errors import GpusUnreadable
from llmux.gpus.memory import GpuMemory, GpuProcess, GpuReader, StartNeed
from llmux.simulation.engine.options import parse
from llmux.simulation.ledger import Ledger, LedgerError, LedgerSnapshot, visible_ledgers

HOOK = f"{__name__}:find_virtual_gpu"
"""The value of LLMUX_GPU_READER under which llmux serves simulated engines."""
LEDGER_FLAG = "--sim-gpu-ledger"
LEDGER_VARIABLE = "LLMUX_SIM_LEDGER"
MEMORY_FLAG = "--sim-gpu-memory"
MEMORY_VARIABLE = "LLMUX_SIM_GPU_MEMORY"
SHARE_FLAGS = ("--gpu-memory-utilization", "--mem-fraction-static")


@dataclass(frozen=True, slots=True)
class LedgerReader:
    """A GpuReader for virtual GPUs, one for each ledger."""

    paths: tuple[Path, ...]

    def read_memory(self) -> tuple[GpuMemory, ...]:
        snapshots = [(path, _snapshot(path)) for path in self.paths]
        return tuple(GpuMemory(str(path), one.capacity_mib, one.used_mib) for path, one in snapshots)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        held = [(path, one) for path in self.paths for one in _snapshot(path).allocations if one.mib]
        held.sort(key=lambda found: -found[1].mib)
        return tuple(GpuProcess(one.pid, one.model or _name(one.pid), one.mib, str(path)) for path, one in held)


def _snapshot(path: Path) -> LedgerSnapshot:
    try:
        return Ledger(path).snapshot()
    except LedgerError as error:
        raise GpusUnreadable(str(error)) from error


def find_virtual_gpu(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[GpuReader, StartNeed | None] | None:
    """The virtual GPUs of an engine with this command line and what it needs to start; None for an engine without one.

    The command line may be that of any kind of simulated engine, or of a container with one inside. Whether the rest of
    it is right, the engine says itself when it is started.
    """
    ledger = _value_of((LEDGER_FLAG,), arguments) or environment.get(LEDGER_VARIABLE)
    if not ledger:
        return None
    try:
        need = _need(arguments, environment)
    except ValueError:
        need = None
    return LedgerReader(tuple(one.path for one in visible_ledgers(ledger, environment))), need


def _need(arguments: Sequence[str], environment: Mapping[str, str]) -> StartNeed | None:
    """None if it is not known; raises ValueError."""
    if mib := _value_of((MEMORY_FLAG,), arguments) or environment.get(MEMORY_VARIABLE):
        return StartNeed(mib=int(mib))
    if share := _value_of(SHARE_FLAGS, arguments):
        return StartNeed(share=float(share))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            options, _, _ = parse(["--model", "any", *arguments], environment)
    except SystemExit:
        return None
    return StartNeed(share=options.gpu_memory_utilization)


def _value_of(flags: Sequence[str], arguments: Sequence[str]) -> str | None:
    """What the last of these flags says, written as one word or as two."""
    value = None
    for word, following in pairwise([*arguments, ""]):
        flag, equals, rest = word.partition("=")
        if flag in flags:
            value = rest if equals else following
    return value


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "unknown"
