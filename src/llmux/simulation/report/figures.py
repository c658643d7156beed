"""The figures of one run over a trace, simulated or real."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmux.simulation.percentile import percentile
from llmux.simulation.report.fate import Fate
from llmux.simulation.virtual.timeline import Shares

WITHIN_SECONDS = (5, 10, 30)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Some durations in a few numbers, in seconds; all None when there were none."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None

    @classmethod
    def of(cls, durations: Iterable[float]) -> "Distribution":
        """In whatever order they come."""
        ordered = sorted(durations)
        mean = math.fsum(ordered) / len(ordered) if ordered else None
        p50, p90, p99, longest = (percentile(ordered, percent) for percent in (50, 90, 99, 100))
        return cls(mean, p50, p90, p99, longest)


@dataclass(frozen=True, slots=True)
class Figures:
    """What some requests had to bear. ``within`` counts those that were not served as not within any time.

    ``share`` is None where it is not known.
    """

    requests: int
    unserved: int
    wait: Distribution
    ttft: Distribution
    latency: Distribution
    within: Mapping[int, float]
    switches: int
    share: Shares | None
    starvation: float
    """The longest time that somebody waited for a model and nobody was admitted to it."""


@dataclass(frozen=True, slots=True)
class LowerBound:
    """What no policy can be below. ``durations`` is the least time to first token of each request, in no order."""

    ttft: Distribution
    within: Mapping[int, float]
    durations: Sequence[float]


@dataclass(frozen=True, slots=True)
class RunFigures:
    """A whole run, and each model's part of it."""

    name: str
    total: Figures
    models: Mapping[str, Figures]


def within_of(ordered: Sequence[float], whole: int) -> dict[int, float]:
    """Which share of so many requests had its first token within some times, from sorted durations."""
    return {seconds: bisect_right(ordered, seconds) / max(1, whole) for seconds in WITHIN_SECONDS}


def figures_of(fates: Sequence[Fate], switches: int, share: Shares | None, starvation: float) -> Figures:
    """Add the requests up. Durations are those of the requests that were served."""
    served = [fate for fate in fates if fate.served]
    first_tokens = sorted(fate.first_token_at - fate.arrived_at for fate in served if fate.first_token_at is not None)
    return Figures(
        requests=len(fates),
        unserved=len(fates) - len(served),
        wait=Distribution.of(fate.admitted_at - fate.arrived_at for fate in served if fate.admitted_at is not None),
        ttft=Distribution.of(first_tokens),
        latency=Distribution.of(fate.ended_at - fate.arrived_at for fate in served if fate.ended_at is not None),
        within=within_of(first_tokens, len(fates)),
        switches=switches,
        share=share,
        starvation=starvation,
    )
