"""Why forecasts of waits are wrong: what could be told if more were known, over shapes of workloads.py. See README.md.

At some of the requests that are queued, the simulation is forked: each fork goes on from the very same moment, with a
part of the truth replaced by another draw from the same traffic, until that request is admitted. The median of several
forks is the best forecast that knows everything else, the traffic's law included: it tells what that part costs.

python bench/policies/forecast_causes.py --seeds 101 --json causes.json
python bench/policies/forecast_causes.py --table causes.json
"""

import argparse
import heapq
import itertools
import json
import math
import operator
import os
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from forecasts import LEARNING_SECONDS, Case, played, scenario_of
from shapes import load_of
from workloads import workload

from llmux.core.actions import Action, Admit
from llmux.core.events import Event, RequestArrived
from llmux.core.expected_course import HORIZON_SECONDS
from llmux.core.forecast import Truth, judge
from llmux.core.identifiers import Seconds
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.engine import ROUNDING_TOKENS, VirtualEngine
from llmux.simulation.virtual.preparation import Preparation
from llmux.simulation.virtual.run import VirtualRun
from llmux.simulation.virtual.scenario import Scenario

SHAPES = ("two", "zipf6", "zipf8", "onoff", "longmix", "long", "diurnal")
DRAWS = 5
NEVER = 1e12
"""Seconds: an arrival that does not come."""

Result: TypeAlias = Mapping[str, Any]


class Unknown(StrEnum):
    """What a fork does not know."""

    NOTHING = "nothing"
    """All is right then, or the forks are wrong."""
    LENGTHS = "lengths"
    """Of all answers, those in flight included: other ones of the same model, no shorter than what is there already."""
    ARRIVALS = "arrivals"
    """Still to come: those of the same hours of another day."""
    BOTH = "both"
    NONE_COME = "none come"
    """As arrivals, but forecast as if no more came, once: what it costs to leave them out."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A request that has been queued, and what it was told."""

    number: int
    at: Seconds
    told: Seconds
    """By llmux; infinity where it told nothing."""
    by_draws: Mapping[Unknown, Seconds]


class OpenEngine(VirtualEngine):
    """An engine whose answers can get other lengths."""

    def decoding(self, now: Seconds) -> Mapping[int, int]:
        """How many tokens each request in the batch has yet to decode."""
        self._advance_clock(now)
        return {number: max(1, math.ceil(mark - self._clock - ROUNDING_TOKENS)) for number, mark in self._marks.items()}

    def replace_lengths(self, left: Callable[[int], int]) -> None:
        """Have each request decode so many more tokens; the clock is that of ``decoding``."""
        self._to_decode = {number: tokens if number < 0 else left(number) for number, tokens in self._to_decode.items()}
        self._marks = {
            number: mark if number < 0 else self._clock + left(number) for number, mark in self._marks.items()
        }
        self._heap = [(mark, number) for number, mark in self._marks.items()]
        heapq.heapify(self._heap)
        self._schedule_next()


class OpenRun(VirtualRun):
    """A run of which what is not known yet can be replaced; ``trace`` is the list that it goes through."""

    def __init__(self, scheduler: Scheduler, trace: list[TrafficRequest], scenario: Scenario) -> None:
        preparation, measured = Preparation(scenario.settings.warmup), scenario.measured
        super().__init__(scheduler, trace, scenario.costs, scenario.speed, preparation=preparation, measured=measured)
        self.trace = trace
        self._engines = [OpenEngine(scenario.speed, model.record.spec.max_in_flight) for model in self._models.values()]
        for model, engine in zip(self._models.values(), self._engines, strict=True):
            model.engine = engine

    def replace_arrivals(self, others: Sequence[TrafficRequest], now: Seconds) -> None:
        """Have other requests come from now on."""
        coming = iter([one for one in others if one.at_seconds > now])
        for number in range(self._arrived, len(self.trace)):
            self.trace[number] = next(coming, replace(self.trace[number], at_seconds=NEVER))

    def replace_lengths(self, lengths: Mapping[str, Sequence[int]], chance: random.Random, now: Seconds) -> None:
        """Draw every length anew, also of those in flight: none is shorter than what has been decoded already."""
        trace, decoded = self.trace, dict[int, int]()
        for model, engine in zip(self._models.values(), self._engines, strict=True):
            for number, left in (*model.frozen.items(), *engine.decoding(now).items()):
                if number >= 0:
                    decoded[number] = trace[number].output_tokens - left
        for number in (*self._requests, *range(self._arrived, len(trace))):
            longer = [length for length in lengths[trace[number].model] if length > decoded.get(number, 0)]
            if longer:
                trace[number] = replace(trace[number], output_tokens=chance.choice(longer))

        def left(number: int) -> int:
            return max(1, trace[number].output_tokens - decoded.get(number, 0))

        for model, engine in zip(self._models.values(), self._engines, strict=True):
            model.frozen = {number: left(number) for number in model.frozen}
            engine.replace_lengths(left)


@dataclass(frozen=True, slots=True)
class _Fork:
    """What a fork is for: it reports when a request is admitted, and ends."""

    request: Request
    began_at: Seconds
    pipe: int

    def look(self, actions: Sequence[Action], now: Seconds) -> None:
        """End, if the request has been admitted or waits for longer than forecasts reach."""
        is_late = now > self.began_at + HORIZON_SECONDS
        if is_late or any(isinstance(action, Admit) and action.request is self.request for action in actions):
            os.write(self.pipe, repr(math.inf if is_late else now - self.began_at).encode())
            os._exit(0)


class Forks:
    """Goes with one simulation, and forks it at some of its moments."""

    def __init__(self, case: Case, moments: int) -> None:
        self.trace = workload(case.shape, case.seed, case.seconds, case.stretch)
        self.moments: list[Moment] = []
        self._share = moments / max(1.0, len(self.trace) * (1 - LEARNING_SECONDS / case.seconds))
        self._chance = random.Random(f"moments {case}")
        self._fork: _Fork | None = None
        seeds = [case.seed + 1000 * (1 + draw) for draw in range(DRAWS)]
        self._others = [workload(case.shape, seed, case.seconds, case.stretch) for seed in seeds]
        self._lengths: dict[str, list[int]] = defaultdict(list)
        for one in itertools.chain(*self._others):
            self._lengths[one.model].append(one.output_tokens)
        scenario = scenario_of(case, self.trace)
        self._scheduler = scenario.scheduler()
        self._handle = self._scheduler.handle
        self._scheduler.handle = self._watch  # type: ignore[method-assign]
        self.run = OpenRun(self._scheduler, self.trace, scenario)

    @property
    def is_fork(self) -> bool:
        """Whether this process is one of the forks."""
        return self._fork is not None

    def _watch(self, event: Event, now: Seconds) -> list[Action]:
        actions = self._handle(event, now)
        if self._fork is not None:
            self._fork.look(actions, now)
        elif isinstance(event, RequestArrived) and now > LEARNING_SECONDS and self._chance.random() < self._share:
            request = event.request
            if request in self._scheduler.model(request.model).queue:
                self._look(request, now)
        return actions

    def _look(self, request: Request, now: Seconds) -> None:
        found = self._scheduler.forecast(request, now)
        by_draws = {}
        for unknown in Unknown:
            draws = 1 if unknown in (Unknown.NOTHING, Unknown.NONE_COME) else DRAWS
            waits = []
            for draw in range(draws):
                waited = self._begin_fork(request, unknown, draw, now)
                if waited is None:
                    return
                waits.append(waited)
            by_draws[unknown] = statistics.median(waits)
        told = math.inf if found is None else found.admitted_in_seconds
        self.moments.append(Moment(request.id, now, told, by_draws))

    def _begin_fork(self, request: Request, unknown: Unknown, draw: int, now: Seconds) -> Seconds | None:
        """How long the request waits in one fork; None in the fork itself, which goes on with the simulation."""
        read, write = os.pipe()
        child = os.fork()
        if child:
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                waited = float(pipe.read() or "inf")
            os.waitpid(child, 0)
            return waited
        self._fork = _Fork(request, now, write)
        if unknown in (Unknown.ARRIVALS, Unknown.BOTH, Unknown.NONE_COME):
            self.run.replace_arrivals([] if unknown is Unknown.NONE_COME else self._others[draw], now)
        if unknown in (Unknown.LENGTHS, Unknown.BOTH):
            self.run.replace_lengths(self._lengths, random.Random(f"{request.id} {unknown} {draw}"), now)
        return None


def play(case: Case, moments: int) -> dict[str, object]:
    """Simulate one case, and fork it about so often."""
    forks = Forks(case, moments)
    try:
        result = forks.run.run()
    finally:
        if forks.is_fork:
            os._exit(1)  # Whatever went wrong: the pool must not hear of it twice.
    found = []
    for moment in forks.moments:
        waited = result.admitted_at[moment.number] - moment.at
        if waited <= HORIZON_SECONDS:
            found.append({"waited": waited, "now": moment.told, **moment.by_draws})
    return asdict(case) | {"load": load_of(forks.trace, case.seconds), "moments": found}


COLUMNS = ("now", *Unknown)


def table(results: Sequence[Result]) -> Iterator[str]:
    """The shares of right forecasts, for each shape and over all of them, by what was not known."""
    yield f"| shape | contender | moments | llmux | {' | '.join(f'unknown: {one.value}' for one in Unknown)} |"
    yield "|" + "---|" * (len(COLUMNS) + 3)
    key = operator.itemgetter("contender", "shape")
    everything: dict[str, list[Result]] = defaultdict(list)
    for (contender, shape), rows in itertools.groupby(sorted(results, key=key), key):
        moments = [moment for row in rows for moment in row["moments"]]
        everything[contender] += moments
        yield _row(shape, contender, moments)
    for contender, moments in everything.items():
        yield _row("all", contender, moments)


def _row(shape: str, contender: str, moments: Sequence[Result]) -> str:
    shares = []
    for column in COLUMNS:
        right = sum(judge(one[column], one["waited"]) is Truth.RIGHT for one in moments)
        shares.append(f"{right / max(1, len(moments)):.0%}")
    return f"| {' | '.join([shape, contender, str(len(moments)), *shares])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101])
    parser.add_argument("--seconds", type=float, default=900.0, help="length of each trace")
    parser.add_argument("--moments", type=int, default=25, help="about how many requests of each simulation")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--contenders", nargs="+", default=["adaptive+freeze", "adaptive+wait"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of figures in these files")
    given = parser.parse_args()
    if given.table:
        print("\n".join(table([result for file in given.table for result in json.loads(file.read_text())])))
        return
    results = []
    for result in played(given, partial(play, moments=given.moments)):
        results.append(result)
        given.json.write_text(json.dumps(results))
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
