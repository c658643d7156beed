"""The lower bound of a trace: times to first token that no policy can be below, a clairvoyant one included.

Per request, the bound is its time to first token on a GPU of the model's own (``alone``). To the mean, the least
waiting is added that two sides cause each other by taking turns on the GPU (``least_waiting``): a side that has left at
``x`` is back at ``z`` at the earliest, with a residence of the other side in between, and its requests of that time
wait until ``z``. The cheapest sequence of turns is a shortest path over the times at which residences end. Its costs
are Monge, as longer absences cost over-proportionally, so the best next end moves monotonically: O(n log n), not O(n²).
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappush, heapreplace
from itertools import accumulate, repeat

from llmux.core.identifiers import ALL_OF_IT, Footprint, Seconds
from llmux.core.placement import fits, free_memory
from llmux.core.settings import ModelSpec
from llmux.simulation.figures import Distribution, LowerBound, within_of
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed

SIDES_MAX = 4
"""How many of the busiest models are tried as one side; the cost of each is a shortest path over the whole trace."""
STEPS_MAX = 30_000
"""Of the grid of times; bounds the work for long traces."""
STEP_SECONDS_MIN = 0.01


@dataclass(frozen=True, slots=True)
class Earliest:
    """Times before which no policy begins the prefill of a request or has its first token."""

    arrived_at: Seconds
    prefill_at: Seconds
    first_token_at: Seconds

    @property
    def prefill_seconds(self) -> Seconds:
        return self.first_token_at - self.prefill_at


def alone(
    requests: Sequence[TrafficRequest], speed: EngineSpeed, batch_limit: int, wake_seconds: Seconds
) -> list[Earliest]:
    """One model's requests on an engine that is woken once, never leaves, and decodes a full batch at full speed.

    Each of these times depends on the earlier ones by ``max`` and ``+`` alone, so no delay in a real run (a switch, a
    drain, a slower batch) makes any of them earlier.
    """
    if not requests:
        return []
    prefilled_at = requests[0].at_seconds + wake_seconds
    ends: list[Seconds] = []
    found = []
    for request in requests:
        is_full = len(ends) >= batch_limit
        admitted_at = max(request.at_seconds, ends[0]) if is_full else request.at_seconds
        prefill_at = max(admitted_at, prefilled_at)
        prefilled_at = prefill_at + request.prompt_tokens / speed.prefill
        ends_at = prefilled_at + (request.output_tokens - 1) / speed.decode_alone
        if is_full:
            heapreplace(ends, ends_at)
        else:
            heappush(ends, ends_at)
        found.append(Earliest(request.at_seconds, prefill_at, prefilled_at))
    return found


def lower_bound(
    requests: Sequence[TrafficRequest],
    specs: Sequence[ModelSpec],
    costs: Mapping[str, SwitchCost],
    speed: EngineSpeed,
    residence_seconds_min: Seconds,
    capacity: Footprint = ALL_OF_IT,
) -> LowerBound:
    """Times to first token; no policy is below any of these numbers as long as it serves every request.

    The percentiles are those of models that never have to leave; the mean includes the least cost of taking turns.
    """
    by_name = {spec.name: spec for spec in specs}
    own: dict[str, list[TrafficRequest]] = {}
    for request in requests:
        own.setdefault(request.model, []).append(request)
    earliest = {
        name: alone(some, speed, by_name[name].max_in_flight, costs[name].least_wake) for name, some in own.items()
    }
    durations = sorted(entry.first_token_at - entry.arrived_at for entries in earliest.values() for entry in entries)
    ttft = Distribution.of(durations)
    if ttft.mean is not None:
        waiting = _waiting_for_turns(earliest, by_name, costs, residence_seconds_min, capacity)
        ttft = replace(ttft, mean=ttft.mean + waiting / len(requests))
    return LowerBound(ttft, within_of(durations, len(requests)), durations)


def _waiting_for_turns(
    earliest: Mapping[str, Sequence[Earliest]],
    specs: Mapping[str, ModelSpec],
    costs: Mapping[str, SwitchCost],
    residence_seconds_min: Seconds,
    capacity: Footprint,
) -> Seconds:
    """The highest of the bounds for each of the busiest models against all others."""

    def side(names: Sequence[str], others: Sequence[str]) -> Side:
        """Some models together, as if switching among them took no time."""
        leaving = min(costs[other].evict for other in others)
        waking = min(costs[name].least_wake for name in names)
        ready_at = [entry.prefill_at for name in names for entry in earliest[name]]
        # The order of prefills, which the model of queueing needs, is known only within one model.
        prefills = [entry.prefill_seconds for entry in earliest[names[0]]] if len(names) == 1 else ()
        return Side(ready_at, leaving + waking, residence_seconds_min, prefills)

    busiest = sorted(earliest, key=lambda name: len(earliest[name]), reverse=True)[:SIDES_MAX]
    most = 0.0
    # Of two models, each against the other is the same pair of sides.
    for name in busiest if len(earliest) > 2 else busiest[:1]:
        others = [other for other in earliest if other != name]
        if others and not any(_fit_together(specs[name], specs[other], capacity) for other in others):
            most = max(most, least_waiting(side([name], others), side(others, [name])))
    return most


def _fit_together(one: ModelSpec, other: ModelSpec, capacity: Footprint) -> bool:
    """Whether both models can be awake at once, wherever they are."""
    return any(
        fits(second.awake, free_memory(capacity, [first.awake]))
        for first in one.placements
        for second in other.placements
    )


@dataclass(frozen=True, slots=True)
class Side:
    """One of two sides that take turns on the GPU."""

    ready_at: Sequence[Seconds]
    """When the prefill of each of its requests could begin."""
    switch_seconds: Seconds
    """Duration of the switch to it."""
    residence_seconds_min: Seconds
    prefill_seconds: Sequence[Seconds] = ()
    """How long each request delays those behind it; empty if their order is not known."""


def least_waiting(first: Side, second: Side) -> Seconds:
    """The least seconds of waiting, summed over all requests of both sides, of any sequence of turns."""
    if not first.ready_at or not second.ready_at:
        return 0.0
    end = max(max(first.ready_at), max(second.ready_at))
    step = _step_seconds(first, second, end)
    margin = max(_steps(side.switch_seconds + side.residence_seconds_min, step) for side in (first, second)) + 2
    size = math.ceil(end / step) + 2 * margin + 2
    return _Turns(
        _Absence(first, step, margin, size),
        _Absence(second, step, margin, size),
        (_steps(first.switch_seconds, step), _steps(second.switch_seconds, step)),
        (
            _steps(first.switch_seconds + first.residence_seconds_min, step),
            _steps(second.switch_seconds + second.residence_seconds_min, step),
        ),
    ).solve()


def _step_seconds(first: Side, second: Side, end: Seconds) -> Seconds:
    """A step of which the shortest switch is a multiple if possible, so that rounding does not shorten switches."""
    step = max(STEP_SECONDS_MIN, end / STEPS_MAX)
    shortest = min(first.switch_seconds, second.switch_seconds)
    return shortest / math.floor(shortest / step) if shortest >= step else step


def _steps(seconds: Seconds, step: Seconds) -> int:
    """Whole steps within a duration; the small term keeps an exact multiple from being rounded down."""
    return math.floor(seconds / step + 1e-9)


class _Absence:
    """The cost of a side's absence, from prefix sums over its requests up to each step of the grid."""

    __slots__ = ("counts", "moments", "prefills", "queued", "step")

    def __init__(self, side: Side, step: Seconds, margin: int, size: int) -> None:
        """The trace begins ``margin`` steps after the grid."""
        self.step = step
        self.counts = [0] * size
        self.moments = [0.0] * size
        self.prefills = [0.0] * size
        """Total prefill time of the requests up to a step."""
        self.queued = [0.0] * size
        """The total prefill time of the requests before each request, summed over the requests."""
        before = 0.0
        for at, seconds in zip(side.ready_at, side.prefill_seconds or repeat(0.0), strict=False):
            place = at / step + margin
            index = math.ceil(place)
            self.counts[index] += 1
            self.moments[index] += place
            self.prefills[index] += seconds / step
            self.queued[index] += before
            before += seconds / step
        self.counts = list(accumulate(self.counts))
        for sums in (self.moments, self.prefills, self.queued):
            sums[:] = accumulate(sums)

    def cost(self, left: int, back: int) -> float:
        """The waiting, in steps, of requests that become ready in between: for the return, and for earlier prefills."""
        if back <= left:
            return 0.0
        last = min(back, len(self.counts) - 1)
        count = self.counts[last] - self.counts[left]
        away = count * back - (self.moments[last] - self.moments[left])
        return away + self.queued[last] - self.queued[left] - count * self.prefills[left]


class _Side:
    """The least future cost when this side leaves at each step, and the candidates for the other side's next leave."""

    __slots__ = ("absence", "ahead", "best", "return_steps", "takeovers", "turn_steps")

    def __init__(self, absence: _Absence, return_steps: int, turn_steps: int) -> None:
        self.absence = absence
        self.return_steps = return_steps
        self.turn_steps = turn_steps
        """From this side's leave to the earliest end of the other one's residence."""
        self.ahead = [0.0] * len(absence.counts)
        self.best: deque[int] = deque()
        self.takeovers: deque[int] = deque()
        """For each candidate, the last step at which it is no worse than the one before it."""


class _Turns:
    def __init__(self, first: _Absence, second: _Absence, arriving: tuple[int, int], turns: tuple[int, int]) -> None:
        # Leaves are rounded up and returns down to the grid, which only shortens absences, so the result stays a
        # bound; it costs at most one step on either side.
        self._first = _Side(first, arriving[0] - 1, max(1, turns[1]))
        self._second = _Side(second, arriving[1] - 1, max(1, turns[0]))

    def solve(self) -> Seconds:
        size = len(self._first.ahead)
        for step in range(size - 1, -1, -1):
            self._settle(self._first, self._second, step)
            self._settle(self._second, self._first, step)
        return min(self._first.ahead[0], self._second.ahead[0]) * self._first.absence.step

    def _settle(self, side: _Side, other: _Side, step: int) -> None:
        """Compute the least future cost if ``side`` leaves at ``step``."""
        self._offer(side, other, step + side.turn_steps, step)
        if side.absence.counts[step] == side.absence.counts[-1]:
            return
        best, takeovers = side.best, side.takeovers
        while len(best) > 1 and takeovers[1] >= step:
            best.popleft()
            takeovers.popleft()
        side.ahead[step] = _total(side, other, step, best[0])

    def _offer(self, side: _Side, other: _Side, end: int, step: int) -> None:
        """Add the candidate that the other side's residence ends at ``end``."""
        best, takeovers = side.best, side.takeovers
        while best:
            takeover = _takeover(side, other, best[-1], end, step)
            if takeover < takeovers[-1]:
                if takeover >= 0:
                    best.append(end)
                    takeovers.append(takeover)
                return
            best.pop()
            takeovers.pop()
        best.append(end)
        takeovers.append(len(side.ahead))


def _total(side: _Side, other: _Side, left: int, end: int) -> float:
    ahead = other.ahead[end] if end < len(other.ahead) else 0.0
    return side.absence.cost(left, end + side.return_steps) + ahead


def _takeover(side: _Side, other: _Side, later: int, earlier: int, step: int) -> int:
    """The last step, up to ``step``, at which the earlier end is no worse; -1 if it is never."""
    low, high = -1, step
    while low < high:
        middle = (low + high + 1) // 2
        if _total(side, other, middle, earlier) <= _total(side, other, middle, later):
            low = middle
        else:
            high = middle - 1
    return low
