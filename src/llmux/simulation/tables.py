"""Figures as tables, and as one JSON document."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmux.simulation.figures import WITHIN_SECONDS, Distribution, Figures, LowerBound, RunFigures

DIGITS = 6
"""Of seconds and shares in JSON."""

WAIT_HEADS = ("first token", "requests", "lost", "mean", "p50", "p90", "p99", "max")
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
ON_TIME_HEADS = ("on time", "tokens", "requests", "stall mean", "p99")
NOTE = (
    "In seconds from the request's arrival. on time: the first token within ttft_target_seconds, and the rest at "
    "reading_tokens_per_second from then on; requests: with all of their tokens. stall: how long a reader of that "
    "speed had nothing to read after the first token. lost: not served; refused: of these, by refuse_after_seconds. "
    "starved: the longest time in which requests waited for a model and none was admitted to it. serving … idle: "
    "shares of the GPU's time."
)


@dataclass(frozen=True, slots=True)
class Rows:
    """One table: its heads, and rows of cells with whether the row is about a whole run."""

    heads: tuple[str, ...]
    rows: tuple[tuple[bool, tuple[str, ...]], ...]


def render(runs: Sequence[RunFigures], bound: LowerBound | None) -> RenderableType:
    """Three tables: what was on time; times to first token; and latencies, switches and shares of time."""
    tables = (on_time_rows(runs), wait_rows(runs, bound), rest_rows(runs))
    parts = [part for rows in tables for part in (_table(rows), Text())]
    return Group(*parts, Text(NOTE, style="dim"))


def on_time_rows(runs: Sequence[RunFigures]) -> Rows:
    """The objective: what was on time, and the stalls of readers."""
    return Rows(ON_TIME_HEADS, tuple((is_whole, _on_time(name, figures)) for is_whole, name, figures in _parts(runs)))


def wait_rows(runs: Sequence[RunFigures], bound: LowerBound | None) -> Rows:
    """Times to first token; the lower bound of the mean comes last."""
    heads = (*WAIT_HEADS, *(f"≤{seconds} s" for seconds in WITHIN_SECONDS))
    rows = [(is_whole, _waits(name, figures)) for is_whole, name, figures in _parts(runs)]
    if bound is not None:
        known = ("lower bound", "", "", seconds_text(bound.ttft_mean))
        rows.append((False, known + ("",) * (len(heads) - len(known))))
    return Rows(heads, tuple(rows))


def rest_rows(runs: Sequence[RunFigures]) -> Rows:
    """Latencies, switches, starvation and shares of time."""
    return Rows(REST_HEADS, tuple((is_whole, _rest(name, figures)) for is_whole, name, figures in _parts(runs)))


def seconds_text(seconds: float | None) -> str:
    """Three significant digits: ``0.123``, ``1.23``, ``12.3``, ``1234``."""
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


def _on_time(name: str, figures: Figures) -> tuple[str, ...]:
    shares = (f"{figures.tokens_on_time:.1%}", f"{figures.requests_on_time:.1%}")
    return (name, *shares, seconds_text(figures.stall.mean), seconds_text(figures.stall.p99))


def _waits(name: str, figures: Figures) -> tuple[str, ...]:
    lost = f"{figures.unserved} ({figures.refused} refused)" if figures.refused else str(figures.unserved)
    return (name, str(figures.requests), lost, *_cells(figures.ttft), *_within(figures.within))


def _rest(name: str, figures: Figures) -> tuple[str, ...]:
    share = figures.share
    parts = ["", "", "", ""]
    if share is not None:
        parts = [f"{part:.1%}" for part in (share.serving, share.switching, share.draining, share.idle)]
    latency = _cells(figures.latency)
    return (name, *latency, str(figures.switches), seconds_text(figures.starvation), *parts)


def _within(shares: Mapping[int, float]) -> tuple[str, ...]:
    return tuple(f"{share:.0%}" for share in shares.values())


def _cells(durations: Distribution) -> tuple[str, ...]:
    numbers = (durations.mean, durations.p50, durations.p90, durations.p99, durations.max)
    return tuple(seconds_text(number) for number in numbers)


def document(
    trace: Sequence[str], requests: int, runs: Sequence[RunFigures], bound: LowerBound | None, **more: Any
) -> dict[str, Any]:
    """Everything for ``--json``, in seconds and in shares from 0 to 1; without a lower bound there is no entry."""
    result: dict[str, Any] = {"trace": " ".join(trace), "requests": requests, **more}
    result["policies"] = {
        run.name: _figures_document(run.total)
        | {"models": {name: _figures_document(figures) for name, figures in run.models.items()}}
        for run in runs
    }
    if bound is not None:
        result["lower_bound"] = {"ttft": {"mean": _rounded_one(bound.ttft_mean)}}
    return result


def _figures_document(figures: Figures) -> dict[str, Any]:
    share = figures.share
    names = ("serving", "switching", "draining", "idle")
    return {
        "requests": figures.requests,
        "unserved": figures.unserved,
        "refused": figures.refused,
        "wait": _rounded(figures.wait),
        "ttft": _rounded(figures.ttft),
        "latency": _rounded(figures.latency),
        "on_time": {
            "tokens": round(figures.tokens_on_time, DIGITS),
            "requests": round(figures.requests_on_time, DIGITS),
        },
        "stall": _rounded(figures.stall),
        "within": {str(seconds): round(part, DIGITS) for seconds, part in figures.within.items()},
        "switches": figures.switches,
        "share": None if share is None else {name: round(getattr(share, name), DIGITS) for name in names},
        "starvation": round(figures.starvation, DIGITS),
    }


def _rounded(distribution: Distribution) -> dict[str, float | None]:
    return {name: _rounded_one(seconds) for name, seconds in asdict(distribution).items()}


def _rounded_one(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, DIGITS)
