"""The figures of a run, simulated or real: distributions of durations, starvation, and shares of time."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmux.simulation.residency import Shares
from llmux.simulation.traffic import Ending, RequestOutcome

WITHIN_SECONDS = (5, 10, 30)


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile of sorted values; None if there are none."""
    if not ordered:
        return None
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Durations in seconds, summarised; all None if there were none."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None

    @classmethod
    def of(cls, durations: Iterable[float]) -> "Distribution":
        """Summarise durations, in any order."""
        ordered = sorted(durations)
        mean = math.fsum(ordered) / len(ordered) if ordered else None
        p50, p90, p99, longest = (percentile(ordered, percent) for percent in (50, 90, 99, 100))
        return cls(mean, p50, p90, p99, longest)


@dataclass(frozen=True, slots=True)
class Figures:
    """How some requests fared. Durations are those of the requests that were served."""

    requests: int
    unserved: int
    wait: Distribution
    ttft: Distribution
    """Time to first token."""
    latency: Distribution
    within: Mapping[int, float]
    """By seconds: the share of all requests, unserved ones included, with a first token within that time."""
    switches: int
    share: Shares | None
    """None if it is not known."""
    starvation: float
    """The longest time in which requests waited for a model and none was admitted to it."""


@dataclass(frozen=True, slots=True)
class LowerBound:
    """What no policy can be below. ``durations`` is the least time to first token of each request, in no order."""

    ttft: Distribution
    within: Mapping[int, float]
    durations: Sequence[float]


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The figures of a whole run and of each of its models."""

    name: str
    total: Figures
    models: Mapping[str, Figures]


def run_figures(
    name: str,
    outcomes: Sequence[RequestOutcome],
    switches: Counter[str],
    share_of: Callable[[str | None], Shares | None],
) -> RunFigures:
    """The figures of a run from its outcomes and its switches to each model.

    ``share_of`` returns the shares of the time of one model, or of all for None.
    """
    own: dict[str, list[RequestOutcome]] = {}
    for outcome in outcomes:
        own.setdefault(outcome.request.model, []).append(outcome)
    models = {model: _figures(some, switches[model], share_of(model), starvation(some)) for model, some in own.items()}
    longest = max((figures.starvation for figures in models.values()), default=0.0)
    return RunFigures(name, _figures(outcomes, switches.total(), share_of(None), longest), models)


def _figures(outcomes: Sequence[RequestOutcome], switches: int, share: Shares | None, starved: float) -> Figures:
    served = [outcome for outcome in outcomes if outcome.ending is Ending.ANSWERED]
    ttfts = sorted(one.first_token_at - one.arrived_at for one in served if one.first_token_at is not None)
    return Figures(
        requests=len(outcomes),
        unserved=len(outcomes) - len(served),
        wait=Distribution.of(one.admitted_at - one.arrived_at for one in served if one.admitted_at is not None),
        ttft=Distribution.of(ttfts),
        latency=Distribution.of(one.ended_at - one.arrived_at for one in served if one.ended_at is not None),
        within=within_of(ttfts, len(outcomes)),
        switches=switches,
        share=share,
        starvation=starved,
    )


def within_of(ordered: Sequence[float], requests: int) -> dict[int, float]:
    """The shares of ``requests`` with a first token within some times, from their sorted times to first token."""
    return {seconds: bisect_right(ordered, seconds) / max(1, requests) for seconds in WITHIN_SECONDS}


def starvation(outcomes: Iterable[RequestOutcome]) -> float:
    """The longest time in which requests waited for the one model of these requests and none was admitted to it."""
    changes: list[tuple[float, int, bool]] = []
    for outcome in outcomes:
        left_at = outcome.admitted_at if outcome.admitted_at is not None else outcome.ended_at
        if left_at is not None and left_at > outcome.arrived_at:
            changes += [(outcome.arrived_at, 1, False), (left_at, -1, outcome.admitted_at is not None)]
    longest, waiting, since = 0.0, 0, 0.0
    for at, change, is_admission in sorted(changes):
        if not waiting:
            since = at
        waiting += change
        if change < 0 and (is_admission or not waiting):
            longest = max(longest, at - since)
            since = at
    return longest
