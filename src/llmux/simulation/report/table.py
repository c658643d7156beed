"""The figures as tables for a reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmux.simulation.report.figures import WITHIN_SECONDS, Distribution, Figures, LowerBound, RunFigures

WAIT_HEADS = ("first token", "calls", "lost", "mean", "p50", "p90", "p99", "max")
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
    "model and nobody was admitted to it. serving … idle: how the GPU's time went."
)


@dataclass(frozen=True, slots=True)
class Rows:
    """One table: its heads, and rows of which some are about a whole run."""

    heads: tuple[str, ...]
    rows: tuple[tuple[bool, tuple[str, ...]], ...]


def render(runs: Sequence[RunFigures], bound: LowerBound | None) -> RenderableType:
    """Two tables: how long requests waited for their first token, and what the rest was."""
    return Group(_table(wait_rows(runs, bound)), Text(), _table(rest_rows(runs)), Text(), Text(NOTE, style="dim"))


def wait_rows(runs: Sequence[RunFigures], bound: LowerBound | None) -> Rows:
    """How long requests waited for their first token; the lower bound comes last."""
    rows = [(is_whole, _waits(name, figures)) for is_whole, name, figures in _parts(runs)]
    if bound is not None:
        rows.append((False, ("lower bound", "", "", *_distribution(bound.ttft), *_within(bound.within))))
    return Rows((*WAIT_HEADS, *(f"≤{seconds} s" for seconds in WITHIN_SECONDS)), tuple(rows))


def rest_rows(runs: Sequence[RunFigures]) -> Rows:
    """How long requests took, and what the GPU did."""
    return Rows(REST_HEADS, tuple((is_whole, _rest(name, figures)) for is_whole, name, figures in _parts(runs)))


def seconds_text(seconds: float | None) -> str:
    """``0.123``, ``1.23``, ``12.3``, ``1234``."""
    if seconds is None:
        return "–"
    digits = 3 if seconds < 1 else 2 if seconds < 10 else 1 if seconds < 100 else 0
    return f"{seconds:.{digits}f}"


def _parts(runs: Sequence[RunFigures]) -> list[tuple[bool, str, Figures]]:
    parts = []
    for run in runs:
        parts.append((True, run.name, run.total))
        if len(run.models) > 1:
            parts += [(False, f"  {model}", figures) for model, figures in run.models.items()]
    return parts


def _table(rows: Rows) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for number, head in enumerate(rows.heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for is_whole, cells in rows.rows:
        table.add_row(*map(Text, cells), style="bold" if is_whole else "")
    return table


def _waits(name: str, figures: Figures) -> tuple[str, ...]:
    return (name, str(figures.requests), str(figures.unserved), *_distribution(figures.ttft), *_within(figures.within))


def _rest(name: str, figures: Figures) -> tuple[str, ...]:
    share = figures.share
    parts = ["", "", "", ""]
    if share is not None:
        parts = [f"{part:.1%}" for part in (share.serving, share.switching, share.draining, share.idle)]
    latency = _distribution(figures.latency)
    return (name, *latency, str(figures.switches), seconds_text(figures.starvation), *parts)


def _within(shares: Mapping[int, float]) -> tuple[str, ...]:
    return tuple(f"{share:.0%}" for share in shares.values())


def _distribution(durations: Distribution) -> tuple[str, ...]:
    numbers = (durations.mean, durations.p50, durations.p90, durations.p99, durations.max)
    return tuple(seconds_text(number) for number in numbers)
