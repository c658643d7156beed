"""How runs used the GPUs, as a table and as JSON documents."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmux.simulation.occupancy import NO_SLEEPERS, GpuFigures, GpuUse, LeaseTimes, ReadAheadFigures
from llmux.simulation.tables import DIGITS, Rows, seconds_text

GPU_HEADS = (
    "on the GPUs",
    "held",
    "at most",
    "serving",
    "switch",
    "drain",
    "idle",
    "which models, for how much of the time",
)
GPU_NOTE = (
    "held, at most: memory of the GPU that models held, on average and at most. forced by memory: the model had left "
    "because another one needed its place; not forced: because nobody had asked for it."
)


def render_use(names: Sequence[str], uses: Sequence[GpuUse]) -> RenderableType:
    """A table of all runs and their GPUs."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for head in GPU_HEADS:
        is_text = head in (GPU_HEADS[0], GPU_HEADS[-1])
        table.add_column(head, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for is_whole, cells in gpu_rows(names, uses).rows:
        table.add_row(*map(Text, cells), style="bold" if is_whole else "")
    return Group(table, Text(), Text(GPU_NOTE, style="dim"))


def gpu_rows(names: Sequence[str], uses: Sequence[GpuUse]) -> Rows:
    """A row for each run with its switches, and below it one for each GPU."""
    rows: list[tuple[bool, tuple[str, ...]]] = []
    for name, use in zip(names, uses, strict=True):
        rows.append((True, (name, "", "", "", "", "", "", _causes_text(use))))
        rows += [(False, _gpu_cells(gpu)) for gpu in use.gpus]
    return Rows(GPU_HEADS, tuple(rows))


def gpu_document(use: GpuUse) -> dict[str, Any]:
    """For ``--json``: by GPU, and the switches by how the model had left."""
    return {
        "gpus": {gpu.name: _figures_document(gpu) for gpu in use.gpus},
        "gpu_idle_seconds": round(use.idle_seconds, DIGITS),
        "switches_by_cause": asdict(use.causes),
        "sleepers": asdict(use.sleepers),
        "read_ahead": None if use.read_ahead is None else _read_ahead_document(use.read_ahead),
        "gpu_leases": [_lease_document(lease) for lease in use.leases],
    }


def _causes_text(use: GpuUse) -> str:
    causes = use.causes
    parts = f"{causes.first} first, {causes.forced} forced by memory, {causes.unforced} not forced"
    text = f"{causes.total} switches: {parts}"
    sleepers = use.sleepers
    if sleepers != NO_SLEEPERS:
        text += f"; sleepers: {sleepers.steps_down} steps down, at most {sleepers.host_mib_max} MiB of host memory"
    if use.leases:
        waited = [lease.held_at - lease.asked_at for lease in use.leases if lease.held_at is not None]
        text += f"; GPU leases: {len(waited)} of {len(use.leases)} held"
        text += f", after {seconds_text(max(waited))} s at most" if waited else ""
    if (ahead := use.read_ahead) is not None:
        text += f"; read ahead: all files of {ahead.whole} of {ahead.wakes} wakes that read any"
        text += f", {seconds_text(ahead.saved_seconds)} s saved"
    return text


def _gpu_cells(gpu: GpuFigures) -> tuple[str, ...]:
    shares = gpu.shares
    residents = sorted(gpu.residents.items(), key=lambda entry: -entry[1])
    return (
        f"  GPU {gpu.name}" if gpu.total_mib is not None else "  all GPUs",
        f"{gpu.held_mean:.0%}",
        f"{gpu.held_max:.0%}",
        *(f"{part:.1%}" for part in (shares.serving, shares.switching, shares.draining, shares.idle)),
        ", ".join(f"{model} {share:.0%}" for model, share in residents),
    )


def _read_ahead_document(ahead: ReadAheadFigures) -> dict[str, float]:
    return {key: round(number, DIGITS) for key, number in asdict(ahead).items()}


def _lease_document(lease: LeaseTimes) -> dict[str, float | None]:
    times = {"asked_at": lease.asked_at, "held_at": lease.held_at, "ended_at": lease.ended_at}
    return {key: None if at is None else round(at, DIGITS) for key, at in times.items()}


def _figures_document(gpu: GpuFigures) -> dict[str, Any]:
    return {
        "memory_mib": gpu.total_mib,
        "held": {"mean": round(gpu.held_mean, DIGITS), "max": round(gpu.held_max, DIGITS)},
        "share": {name: round(part, DIGITS) for name, part in asdict(gpu.shares).items()},
        "models": {model: round(share, DIGITS) for model, share in gpu.residents.items()},
    }
