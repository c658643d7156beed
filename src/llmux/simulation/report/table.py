"""The figures as tables for a reader."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmux.simulation.report.figures import Distribution, Figures, RunFigures

WAIT_HEADS = ("first token", "calls", "lost", "mean", "p50", "p90", "p99", "max", "≤5 s", "≤10 s", "≤30 s")
REST_HEADS = (
    "last token",
    "mean",
    "p50",
    "p90",
    "p99",
    "max",
    "switches",
    "starved",
    "serving",
    "switch",
    "drain",
    "idle",
)
NOTE = (
    "In seconds from the request's arrival. lost: not served. starved: the longest time that somebody waited for a "
    "model and it served nobody. serving … idle: how the GPU's time went."
)


def render(runs: Sequence[RunFigures], bound: Distribution | None) -> RenderableType:
    """Two tables: how long requests waited for their first token, and what the rest was."""
    waits, rest = _table(WAIT_HEADS), _table(REST_HEADS)
    for run in runs:
        waits.add_row(*_waits(run.name, run.total), style="bold")
        rest.add_row(*_rest(run.name, run.total), style="bold")
        if len(run.models) > 1:
            for model, figures in run.models.items():
                waits.add_row(*_waits(f"  {model}", figures))
                rest.add_row(*_rest(f"  {model}", figures))
    if bound is not None:
        waits.add_row("lower bound", "", "", *_distribution(bound), style="italic")
    return Group(waits, Text(), rest, Text(), Text(NOTE, style="dim"))


def seconds_text(seconds: float | None) -> str:
    """``0.123``, ``1.23``, ``12.3``, ``1234``."""
    if seconds is None:
        return "–"
    digits = 3 if seconds < 1 else 2 if seconds < 10 else 1 if seconds < 100 else 0
    return f"{seconds:.{digits}f}"


def _table(heads: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    return table


def _waits(name: str, figures: Figures) -> tuple[str, ...]:
    within = (f"{share:.0%}" for share in figures.within.values())
    return (name, str(figures.requests), str(figures.unserved), *_distribution(figures.ttft), *within)


def _rest(name: str, figures: Figures) -> tuple[str, ...]:
    share = figures.share
    parts = (f"{part:.1%}" for part in (share.serving, share.switching, share.draining, share.idle))
    latency = _distribution(figures.latency)
    return (name, *latency, str(figures.switches), seconds_text(figures.starvation), *parts)


def _distribution(durations: Distribution) -> tuple[str, ...]:
    numbers = (durations.mean, durations.p50, durations.p90, durations.p99, durations.max)
    return tuple(seconds_text(number) for number in numbers)
