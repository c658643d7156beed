"""The least total waiting that two sides cannot avoid that take turns on the GPU, known in advance.

A side that has left at ``x`` is there again at ``z``; whoever of it wants to begin in between waits until ``z``. In
between, the other side has had its turn. Which sequence of turns costs least is a shortest path over the times at
which turns end, and because longer absences cost over-proportionally (the costs are Monge), the best next end moves
monotonically: O(n log n) instead of O(n²).
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

from llmux.core.identifiers import Seconds

STEPS_MAX = 30_000
STEP_SECONDS_MIN = 0.01


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: when its requests could begin, how long the switch to it takes, and its shortest turn.

    ``prefill_seconds``, where given, is how long each then keeps those behind it waiting.
    """

    ready_at: Sequence[Seconds]
    arriving_seconds: Seconds
    turn_seconds_min: Seconds
    prefill_seconds: Sequence[Seconds] = ()


def least_waiting(first: Side, second: Side) -> Seconds:
    """Seconds of waiting, summed over all requests of both sides, that every sequence of turns has at least."""
    if not first.ready_at or not second.ready_at:
        return 0.0
    end = max(max(first.ready_at), max(second.ready_at))
    step = _step_seconds(first, second, end)
    margin = max(_steps(side.arriving_seconds + side.turn_seconds_min, step) for side in (first, second)) + 2
    size = math.ceil(end / step) + 2 * margin + 2
    return _Turns(
        _Absence(first, step, margin, size),
        _Absence(second, step, margin, size),
        (_steps(first.arriving_seconds, step), _steps(second.arriving_seconds, step)),
        (
            _steps(first.arriving_seconds + first.turn_seconds_min, step),
            _steps(second.arriving_seconds + second.turn_seconds_min, step),
        ),
    ).solve()


def _step_seconds(first: Side, second: Side, end: Seconds) -> Seconds:
    """A step that is fine enough, and of which the shortest switch is a multiple if that is possible."""
    step = max(STEP_SECONDS_MIN, end / STEPS_MAX)
    shortest = min(first.arriving_seconds, second.arriving_seconds)
    return shortest / math.floor(shortest / step) if shortest >= step else step


def _steps(seconds: Seconds, step: Seconds) -> int:
    """How many whole steps fit into a duration."""
    return math.floor(seconds / step + 1e-9)


class _Absence:
    """What it costs a side to be away: sums over its requests, up to each step of the grid."""

    __slots__ = ("counts", "moments", "queued", "read", "step")

    def __init__(self, side: Side, step: Seconds, margin: int, size: int) -> None:
        """The trace's beginning is ``margin`` steps after the grid's."""
        self.step = step
        self.counts = [0] * size
        self.moments = [0.0] * size
        self.read = [0.0] * size
        """How long all requests up to there take to be read."""
        self.queued = [0.0] * size
        """The same of those before each request, summed over the requests."""
        before = 0.0
        for at, seconds in zip(side.ready_at, side.prefill_seconds or repeat(0.0), strict=False):
            place = at / step + margin
            index = math.ceil(place)
            self.counts[index] += 1
            self.moments[index] += place
            self.read[index] += seconds / step
            self.queued[index] += before
            before += seconds / step
        self.counts = list(accumulate(self.counts))
        for sums in (self.moments, self.read, self.queued):
            sums[:] = accumulate(sums)

    def cost(self, left: int, back: int) -> float:
        """The waiting, in steps, of those who wanted to begin in between: for the side, and for those before them."""
        if back <= left:
            return 0.0
        last = min(back, len(self.counts) - 1)
        count = self.counts[last] - self.counts[left]
        away = count * back - (self.moments[last] - self.moments[left])
        return away + self.queued[last] - self.queued[left] - count * self.read[left]


class _Side:
    """The costs still to come when this side leaves at a step, and the candidates for the other one's leaving."""

    __slots__ = ("absence", "ahead", "best", "return_steps", "takeovers", "turn_steps")

    def __init__(self, absence: _Absence, return_steps: int, turn_steps: int) -> None:
        self.absence = absence
        self.return_steps = return_steps
        self.turn_steps = turn_steps
        """From this side's leaving to the end of the shortest turn of the other one."""
        self.ahead = [0.0] * len(absence.counts)
        self.best: deque[int] = deque()
        self.takeovers: deque[int] = deque()
        """For each candidate the step at and before which it is better than the one before it."""


class _Turns:
    def __init__(self, first: _Absence, second: _Absence, arriving: tuple[int, int], turns: tuple[int, int]) -> None:
        # A real time of leaving is rounded up and one of coming back down, which can only shorten absences; what is
        # lost by that is at most one step on either side.
        self._first = _Side(first, arriving[0] - 1, max(1, turns[1]))
        self._second = _Side(second, arriving[1] - 1, max(1, turns[0]))

    def solve(self) -> Seconds:
        size = len(self._first.ahead)
        for step in range(size - 1, -1, -1):
            self._settle(self._first, self._second, step)
            self._settle(self._second, self._first, step)
        return min(self._first.ahead[0], self._second.ahead[0]) * self._first.absence.step

    def _settle(self, side: _Side, other: _Side, step: int) -> None:
        """Find the least cost ahead if ``side`` leaves at ``step``, and nothing has been paid for it yet."""
        self._offer(side, other, step + side.turn_steps, step)
        if side.absence.counts[step] == side.absence.counts[-1]:
            return
        best, takeovers = side.best, side.takeovers
        while len(best) > 1 and takeovers[1] >= step:
            best.popleft()
            takeovers.popleft()
        side.ahead[step] = _total(side, other, step, best[0])

    def _offer(self, side: _Side, other: _Side, end: int, step: int) -> None:
        """Take up a further candidate: the other side's turn ends at ``end``."""
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
