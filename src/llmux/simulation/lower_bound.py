"""The lower bound of a trace: the mean time to first token that no policy can be below, not even a clairvoyant one.

No request can be below its time to first token on a GPU of the model's own (``alone``). To the mean of that, the least
waiting is added that models cause each other by taking turns on the GPU: the greater of two bounds. One is for all of
them at once (``priced_turns``). The other is for two sides (``least_waiting``): a side that has left at
``x`` is back at ``z`` at the earliest, with a residence of the other side in between, and its requests of that time
wait until ``z``. The cheapest sequence of turns is a shortest path over the times at which residences end. Its costs
are Monge, as longer absences cost over-proportionally, so the best next end moves monotonically: O(n log n), not O(n²).
The second costs more, so it is computed only where a coarse solution does not say already that it is the lesser one.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappush, heapreplace
from itertools import accumulate, repeat
from operator import itemgetter

from llmux.core.identifiers import ALL_OF_IT, Footprint, Seconds
from llmux.core.placement import fits, free_memory
from llmux.core.settings import ModelSpec
from llmux.simulation.figures import LowerBound
from llmux.simulation.priced_turns import Visitor, least_waiting_of_all
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed

SIDES_MAX = 4
"""How many of the busiest models are tried as one side; the cost of each is a shortest path over the whole trace."""
STEPS_MAX = 30_000
"""Of the grid of times; bounds the work for long traces."""
STEP_SECONDS_MIN = 0.01
ROUNDING = 1e-9
"""Of a step: keeps an exact multiple from being rounded to the next."""
TOLERATED_SHARE = 0.001
"""Of the time to first token: how far the bound for all models at once may stay below its best."""


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
    unasked: Collection[str] = (),
) -> LowerBound:
    """The least mean time to first token of any policy that serves every request.

    ``unasked`` are models that may be on the GPU before their first request.
    """
    by_name = {spec.name: spec for spec in specs}
    own: dict[str, list[TrafficRequest]] = {}
    for request in requests:
        own.setdefault(request.model, []).append(request)
    earliest = {
        name: alone(some, speed, by_name[name].max_in_flight, 0.0 if name in unasked else costs[name].least_wake)
        for name, some in own.items()
    }
    if not requests:
        return LowerBound(None)
    waiting_alone = math.fsum(one.first_token_at - one.arrived_at for some in earliest.values() for one in some)
    for_others = _waiting_of_all(earliest, by_name, costs, capacity, unasked, TOLERATED_SHARE * waiting_alone)
    pairs = _pairs_of_sides(earliest, by_name, costs, residence_seconds_min, capacity)
    for most, first, second in sorted(
        ((most_waiting(*pair), *pair) for pair in pairs), key=itemgetter(0), reverse=True
    ):
        if most > for_others:
            for_others = max(for_others, least_waiting(first, second))
    return LowerBound((waiting_alone + for_others) / len(requests))


def _pairs_of_sides(
    earliest: Mapping[str, Sequence[Earliest]],
    specs: Mapping[str, ModelSpec],
    costs: Mapping[str, SwitchCost],
    residence_seconds_min: Seconds,
    capacity: Footprint,
) -> Iterator[tuple["Side", "Side"]]:
    """Each of the busiest models against all others, as far as it can be on the GPUs with none of them."""

    def side(names: Sequence[str], others: Sequence[str]) -> Side:
        """Some models together, as if switching among them took no time."""
        leaving = min(costs[other].evict for other in others)
        waking = min(costs[name].least_wake for name in names)
        ready_at = [entry.prefill_at for name in names for entry in earliest[name]]
        # The order of prefills, which the model of queueing needs, is known only within one model.
        prefills = [entry.prefill_seconds for entry in earliest[names[0]]] if len(names) == 1 else ()
        return Side(ready_at, leaving + waking, residence_seconds_min, prefills)

    busiest = sorted(earliest, key=lambda name: len(earliest[name]), reverse=True)[:SIDES_MAX]
    # Of two models, each against the other is the same pair of sides.
    for name in busiest if len(earliest) > 2 else busiest[:1]:
        others = [other for other in earliest if other != name]
        if others and not any(_fit_together(specs[name], specs[other], capacity) for other in others):
            yield side([name], others), side(others, [name])


def _waiting_of_all(
    earliest: Mapping[str, Sequence[Earliest]],
    specs: Mapping[str, ModelSpec],
    costs: Mapping[str, SwitchCost],
    capacity: Footprint,
    unasked: Collection[str],
    tolerance_seconds: Seconds,
) -> Seconds:
    """The bound for the busiest models of which no two can be on the GPUs together; others do not count."""
    apart: list[str] = []
    for name in sorted(earliest, key=lambda name: len(earliest[name]), reverse=True):
        if not any(_fit_together(specs[name], specs[other], capacity) for other in apart):
            apart.append(name)
    return least_waiting_of_all(
        [
            Visitor([entry.prefill_at for entry in earliest[name]], costs[name].least_wake + costs[name].evict)
            for name in apart
        ],
        sum(costs[name].least_wake for name in apart if name in unasked),
        tolerance_seconds,
    )


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
    """The least seconds of waiting, summed over all requests of both sides, of any sequence of turns.

    Leaves are rounded up and returns down to a grid, which only shortens absences, so the result stays a bound. It
    costs at most one step on either side.
    """
    return _on_grid(first, second, STEPS_MAX, lambda seconds, step: math.floor(seconds / step + ROUNDING), 1)


def most_waiting(first: Side, second: Side) -> Seconds:
    """What ``least_waiting`` does not exceed: the cost of some sequence of turns, at a twentieth of the effort."""
    return _on_grid(first, second, STEPS_MAX // 20, lambda seconds, step: math.ceil(seconds / step - ROUNDING), 0)


def _on_grid(
    first: Side, second: Side, steps_max: int, in_steps: Callable[[Seconds, Seconds], int], shortened: int
) -> Seconds:
    """The waiting of the best sequence of turns that leave at steps of a grid, with returns this much too early."""
    if not first.ready_at or not second.ready_at:
        return 0.0
    sides = (first, second)
    end = max(max(side.ready_at) for side in sides)
    step = _step_seconds(min(side.switch_seconds for side in sides), end, steps_max)
    switches = [in_steps(side.switch_seconds, step) for side in sides]
    turns = [in_steps(side.switch_seconds + side.residence_seconds_min, step) for side in sides]
    margin = max(turns) + 2
    size = math.ceil(end / step) + 2 * margin + 2
    one = _Side(_Absence(first, step, margin, size), switches[0] - shortened, max(1, turns[1]))
    other = _Side(_Absence(second, step, margin, size), switches[1] - shortened, max(1, turns[0]))
    return _least_on_grid(one, other) * step


def _step_seconds(shortest: Seconds, end: Seconds, steps_max: int) -> Seconds:
    """A step of which the shortest switch is a multiple if possible, so that rounding does not shorten switches."""
    step = max(STEP_SECONDS_MIN, end / steps_max)
    return shortest / math.floor(shortest / step) if shortest >= step else step


class _Absence:
    """The cost of a side's absence, from prefix sums over its requests up to each step of the grid.

    Requests that become ready between ``left`` and ``back`` wait for the return, and for the prefills before theirs:
    ``cost_of_return(back) + cost_of_leaving(left) - counts[left] * back - prefills[left] * count(back)`` steps.
    """

    __slots__ = ("_moments", "_queued", "counts", "prefills", "step")

    def __init__(self, side: Side, step: Seconds, margin: int, size: int) -> None:
        """The trace begins ``margin`` steps after the grid."""
        self.step = step
        counts, moments, prefills, queued = [0] * size, [0.0] * size, [0.0] * size, [0.0] * size
        before = 0.0
        for at, seconds in zip(side.ready_at, side.prefill_seconds or repeat(0.0), strict=False):
            place = at / step + margin
            index = math.ceil(place)
            counts[index] += 1
            moments[index] += place
            prefills[index] += seconds / step
            queued[index] += before
            before += seconds / step
        self.counts = list(accumulate(counts))
        self.prefills = list(accumulate(prefills))
        """Total prefill time of the requests up to a step."""
        self._moments = list(accumulate(moments))
        self._queued = list(accumulate(queued))
        """The total prefill time of the requests before each request, summed over the requests."""

    def count(self, back: int) -> int:
        """How many requests have become ready by a step, which may be after the grid."""
        return self.counts[min(back, len(self.counts) - 1)]

    def cost_of_return(self, back: int) -> float:
        """The part of the cost that is the same whenever the side left."""
        last = min(back, len(self.counts) - 1)
        return self.counts[last] * back - self._moments[last] + self._queued[last]

    def cost_of_leaving(self, left: int) -> float:
        """The part of the cost that is the same whenever the side is back."""
        return self._moments[left] - self._queued[left] + self.counts[left] * self.prefills[left]


class _Side:
    """The least future cost when this side leaves at each step, and the candidates for the other side's next leave."""

    __slots__ = ("_best", "_takeovers", "_until", "absence", "ahead", "return_steps", "turn_steps")

    def __init__(self, absence: _Absence, return_steps: int, turn_steps: int) -> None:
        self.absence = absence
        self.return_steps = return_steps
        self.turn_steps = turn_steps
        """From this side's leave to the earliest end of the other one's residence."""
        self.ahead = [0.0] * len(absence.counts)
        self._until = [0.0] * (len(absence.counts) + turn_steps)
        """By end of the other side's residence: the cost of the return after it, and of all that comes then."""
        self._best: deque[int] = deque()
        self._takeovers: deque[int] = deque()
        """For each candidate, the last step at which it is no worse than the one before it."""

    def settle(self, other: "_Side", step: int) -> None:
        """Compute the least future cost if this side leaves at ``step``; later steps have been settled."""
        absence, best, takeovers = self.absence, self._best, self._takeovers
        end = step + self.turn_steps
        ahead = other.ahead[end] if end < len(other.ahead) else 0.0
        self._until[end] = absence.cost_of_return(end + self.return_steps) + ahead
        self._offer(end, step)
        if absence.counts[step] == absence.counts[-1]:
            return
        while len(best) > 1 and takeovers[1] >= step:
            best.popleft()
            takeovers.popleft()
        back = best[0] + self.return_steps
        waited_for = absence.counts[step] * back + absence.prefills[step] * absence.count(back)
        self.ahead[step] = self._until[best[0]] + absence.cost_of_leaving(step) - waited_for

    def _offer(self, end: int, step: int) -> None:
        """Add the candidate that the other side's residence ends at ``end``."""
        best, takeovers = self._best, self._takeovers
        while best:
            last = takeovers[-1]
            if last > step:
                last = step + 1
            elif self._takeover(best[-1], end, last, last + 1) == last:
                best.pop()
                takeovers.pop()
                continue
            takeover = self._takeover(best[-1], end, 0, last)
            if takeover >= 0:
                best.append(end)
                takeovers.append(takeover)
            return
        best.append(end)
        takeovers.append(len(self.ahead))

    def _takeover(self, later: int, earlier: int, low: int, high: int) -> int:
        """The last step from ``low`` to before ``high`` at which the earlier end is no worse; ``low - 1`` if none is.

        What is equal for both ends is left out. The rest grows with the step, which is why there is a last one.
        """
        absence, counts, prefills = self.absence, self.absence.counts, self.absence.prefills
        steps = later - earlier
        count = absence.count(later + self.return_steps) - absence.count(earlier + self.return_steps)
        gained = self._until[later] - self._until[earlier]
        while low < high:
            middle = (low + high) // 2
            if counts[middle] * steps + prefills[middle] * count <= gained:
                low = middle + 1
            else:
                high = middle
        return low - 1


def _least_on_grid(first: _Side, second: _Side) -> float:
    """The least waiting, in steps, from the beginning of the grid, with either side there."""
    for step in range(len(first.ahead) - 1, -1, -1):
        first.settle(second, step)
        second.settle(first, step)
    return min(first.ahead[0], second.ahead[0])
