"""The figures of a run, simulated or real: distributions of durations, starvation, and shares of time."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llmux.core.target import DEFAULT_TARGET, Target
from llmux.simulation.on_time import punctuality
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
        return cls.of_sorted(sorted(durations))

    @classmethod
    def of_sorted(cls, ordered: Sequence[float]) -> "Distribution":
        """Summarise durations, the shortest first."""
        mean = math.fsum(ordered) / len(ordered) if ordered else None
        p50, p90, p99, longest = (percentile(ordered, percent) for percent in (50, 90, 99, 100))
        return cls(mean, p50, p90, p99, longest)


@dataclass(frozen=True, slots=True)
class Figures:
    """How some requests fared. Durations are those of the requests that were served."""

    requests: int
    unserved: int
    refused: int
    """How many of the unserved were refused when they came, for the wait that was expected."""
    wait: Distribution
    ttft: Distribution
    """Time to first token."""
    latency: Distribution
    within: Mapping[int, float]
    """By seconds: the share of all requests, unserved ones included, with a first token within that time."""
    tokens_on_time: float
    """The share of all tokens, those of unserved requests included, that came when their model's target asks."""
    requests_on_time: float
    """The share of all requests, unserved ones included, of which every token did."""
    stall: Distribution
    """How long readers had nothing to read after their first token."""
    switches: int
    share: Shares | None
    """None if it is not known."""
    starvation: float
    """The longest time in which requests waited for a model and none was admitted to it."""


@dataclass(frozen=True, slots=True)
class LowerBound:
    """What no policy can be below. Of one request there is none: what it waits can be moved to another."""

    ttft_mean: float | None
    """Seconds to the first token; None without requests."""


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
    target_of: Callable[[str], Target] = lambda model: DEFAULT_TARGET,
) -> RunFigures:
    """The figures of a run from its outcomes and its switches to each model.

    ``share_of`` returns the shares of the time of one model, or of all for None, ``target_of`` a model's target.
    """
    own: dict[str, list[RequestOutcome]] = {}
    for outcome in outcomes:
        own.setdefault(outcome.request.model, []).append(outcome)
    tallies = {model: _Tally.of(some, target_of(model)) for model, some in own.items()}
    starved = {model: starvation(some) for model, some in own.items()}
    models = {
        model: tally.figures(switches[model], share_of(model), starved[model]) for model, tally in tallies.items()
    }
    total = _Tally.merged(list(tallies.values()))
    return RunFigures(name, total.figures(switches.total(), share_of(None), max(starved.values(), default=0.0)), models)


@dataclass(slots=True)
class _Tally:
    """What the figures of some requests are made of. Durations are sorted, those of all models from each model's."""

    requests: int
    refused: int
    tokens: int
    """Of all requests, unserved ones included."""
    served: int = 0
    tokens_on_time: int = 0
    requests_on_time: int = 0
    waits: list[float] = field(default_factory=list)
    ttfts: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, outcomes: Sequence[RequestOutcome], target: Target) -> "_Tally":
        """Of the requests of one model."""
        tokens = sum([outcome.request.output_tokens for outcome in outcomes])
        tally = cls(len(outcomes), sum([outcome.refused for outcome in outcomes]), tokens)
        for outcome in outcomes:
            if outcome.ending is Ending.ANSWERED:
                tally._add(outcome, target)
        for durations in tally.durations():
            durations.sort()
        return tally

    @classmethod
    def merged(cls, tallies: Sequence["_Tally"]) -> "_Tally":
        """Of the requests of all models together."""
        whole = cls(0, 0, 0)
        for tally in tallies:
            whole.requests += tally.requests
            whole.refused += tally.refused
            whole.tokens += tally.tokens
            whole.served += tally.served
            whole.tokens_on_time += tally.tokens_on_time
            whole.requests_on_time += tally.requests_on_time
            for all_of_them, some in zip(whole.durations(), tally.durations(), strict=True):
                all_of_them.extend(some)
        for durations in whole.durations():
            durations.sort()  # Takes sorted parts as they are, and merges them.
        return whole

    def durations(self) -> tuple[list[float], ...]:
        """All of them, as lists that can be changed."""
        return self.waits, self.ttfts, self.latencies, self.stalls

    def _add(self, outcome: RequestOutcome, target: Target) -> None:
        """Add a request that was served."""
        arrived_at, began_at, ended_at = outcome.arrived_at, outcome.first_token_at, outcome.ended_at
        self.served += 1
        if outcome.admitted_at is not None:
            self.waits.append(outcome.admitted_at - arrived_at)
        if began_at is not None:
            self.ttfts.append(began_at - arrived_at)
        if ended_at is not None:
            self.latencies.append(ended_at - arrived_at)
        if began_at is None or ended_at is None:
            return  # It is not known when its tokens came.
        tokens = outcome.request.output_tokens
        found = punctuality(arrived_at, began_at, outcome.progress, ended_at, tokens, target)
        self.tokens_on_time += found.tokens_on_time
        self.requests_on_time += found.tokens_on_time >= tokens
        self.stalls.append(found.stall_seconds)

    def figures(self, switches: int, share: Shares | None, starved: float) -> Figures:
        """The figures of these requests."""
        return Figures(
            requests=self.requests,
            unserved=self.requests - self.served,
            refused=self.refused,
            wait=Distribution.of_sorted(self.waits),
            ttft=Distribution.of_sorted(self.ttfts),
            latency=Distribution.of_sorted(self.latencies),
            within={seconds: bisect_right(self.ttfts, seconds) / max(1, self.requests) for seconds in WITHIN_SECONDS},
            tokens_on_time=self.tokens_on_time / max(1, self.tokens),
            requests_on_time=self.requests_on_time / max(1, self.requests),
            stall=Distribution.of_sorted(self.stalls),
            switches=switches,
            share=share,
            starvation=starved,
        )


def starvation(outcomes: Iterable[RequestOutcome]) -> float:
    """The longest time in which requests waited for the one model of these requests and none was admitted to it."""
    arrivals: list[float] = []
    departures: list[tuple[float, bool]] = []
    """When each request's wait ended, and whether by its admission."""
    for outcome in outcomes:
        left_at = outcome.admitted_at if outcome.admitted_at is not None else outcome.ended_at
        if left_at is not None and left_at > outcome.arrived_at:
            arrivals.append(outcome.arrived_at)
            departures.append((left_at, outcome.admitted_at is not None))
    arrivals.sort()
    departures.sort()
    longest, arrived, since = 0.0, 0, 0.0
    for left, (at, is_admission) in enumerate(departures):
        if arrived == left:
            since = arrivals[arrived]
        while arrived < len(arrivals) and arrivals[arrived] < at:
            arrived += 1
        if is_admission or arrived == left + 1:
            longest = max(longest, at - since)
            since = at
    return longest
