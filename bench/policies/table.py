"""The table of bench/policies: what each policy reached, and whether the bars are held."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

LOAD_MAX = 0.6
BARS = {
    1.0: {1.0: 0.45, 2.0: 0.45, 8.0: 0.75, 30.0: 1.0},
    4.0: {1.0: 0.15, 2.0: 0.15, 8.0: 0.25, 30.0: 0.5},
}
"""By how long answers are and what a switch costs: p99 of the time to first token over that of the best other."""
ROUNDING = 1.0005


def render(results: Sequence[Result]) -> str:
    """Both tables, in Markdown."""
    rows: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        key = tuple(result[name] for name in ("seed", "thin", "stretch", "batch", "cost"))
        rows.setdefault(key, []).append(result)
    return "\n".join([*_freezing(rows), "", *_draining(rows)])


def _freezing(rows: Mapping[tuple[Any, ...], Sequence[Result]]) -> Iterable[str]:
    yield "### Freezing allowed"
    yield ""
    titles = (*_CASE, "best other, drained", "adaptive", "switching", "p99 ×", "latency ×", "bar", "")
    titles += ("best other, frozen too", "p99 ×")
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    held = judged = 0
    for key, row in rows.items():
        own = _of(row, "adaptive", "freeze")
        drained, frozen = best(_others(row, "wait")), best(_others(row, "freeze"))
        ratio, latency = own["p99"] / drained["p99"], own["latency"] / drained["latency"]
        bar = BARS[own["stretch"]][own["cost"]]
        verdict = "not judged"
        if own["load"] <= LOAD_MAX:
            holds = ratio <= bar * ROUNDING and latency <= ROUNDING
            verdict = "held" if holds else "**missed**"
            held, judged = held + holds, judged + 1
        measured = (_times(drained), _reached(own), f"{own['switching']:.0%}", f"{ratio:.2f}", f"{latency:.2f}")
        beside = (_times(frozen), f"{own['p99'] / frozen['p99']:.2f}")
        yield _line(key, own, (*measured, f"{bar:.2f}", verdict, *beside))
    yield ""
    yield f"Held: {held} of the {judged} rows with a load of at most {LOAD_MAX:.0%}."


def _draining(rows: Mapping[tuple[Any, ...], Sequence[Result]]) -> Iterable[str]:
    yield "### Freezing not allowed"
    yield ""
    yield "| " + " | ".join((*_CASE, *(name for name in _names(rows)), "p99 ×", "latency ×", "")) + " |"
    yield "|" + "---|" * (len(_CASE) + len(_names(rows)) + 3)
    held = 0
    for key, row in rows.items():
        own, other = _of(row, "adaptive", "wait"), best(_others(row, "wait"))
        slower, later = own["latency"] / other["latency"], own["p99"] / other["p99"]
        holds = max(slower, later) <= 1.05
        held += holds
        cells = [_reached(_of(row, name, "wait")) + (" ←" if name == other["policy"] else "") for name in _names(rows)]
        yield _line(key, own, (*cells, f"{later:.2f}", f"{slower:.2f}", "held" if holds else "**missed**"))
    yield ""
    yield f"Held: {held} of {len(rows)} rows; ← is the best other one."


_CASE = ("seed", "kept", "answers", "batch", "switch", "load")


def _line(key: tuple[Any, ...], own: Result, cells: Iterable[str]) -> str:
    seed, thin, stretch, batch, cost = key
    case = (f"{seed}", f"{thin:.0%}", f"×{stretch:g}", f"{batch}", f"{cost:g} s", f"{own['load']:.0%}")
    return "| " + " | ".join((*case, *cells)) + " |"


def _names(rows: Mapping[tuple[Any, ...], Sequence[Result]]) -> Sequence[str]:
    return sorted({result["policy"] for row in rows.values() for result in row})


def best(others: Sequence[Result]) -> Result:
    """The lowest p99 of those whose mean is within 10 % of the lowest mean."""
    lowest = min(result["mean"] for result in others)
    return min((result for result in others if result["mean"] <= 1.1 * lowest), key=lambda result: result["p99"])


def _others(row: Sequence[Result], drain: str) -> Sequence[Result]:
    return [result for result in row if result["drain"] == drain and result["policy"] != "adaptive"]


def _of(row: Sequence[Result], policy: str, drain: str) -> Result:
    return next(result for result in row if result["policy"] == policy and result["drain"] == drain)


def _reached(result: Result) -> str:
    lost = f", {result['unserved']} lost" if result["unserved"] else ""
    return f"{_seconds(result['p99'])} / {_seconds(result['latency'])}{lost}"


def _times(result: Result) -> str:
    return f"{result['policy']} {_reached(result)}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"
