"""The least waiting that models cause each other, all at once: the GPU's time gets a price, and each model buys some.

Models that cannot be on the GPU together need its time one after another: for each visit a switch, and what the model
stays. All of it together is no more than there is. Charge every second a price, and give back the price of all seconds
that there are (a Lagrangian relaxation): what each model can then do at best, by itself, in waiting and in price, is
together a lower bound of the waiting, whatever the price. The best price gives the greatest bound.

One model by itself begins its visits, without loss, when a request becomes ready: waiting and price change evenly in
between. So its best plan is a shortest path over its own requests: stay until the next one, or leave and come back at
one of the later ones, for those that became ready meanwhile. As their waiting is linear in the time of the return, the
best time to have left is on a convex hull: O(requests).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmux.core.identifiers import Seconds

PRICES_TRIED_MAX = 24
"""Bounds the work; the bound holds at every price. Five to ten are enough for a thousandth."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """One of several models that take turns."""

    ready_at: Sequence[Seconds]
    """When the prefill of each of its requests could begin, in order."""
    switch_seconds: Seconds
    """What a visit takes of the GPU's time before and after it: to bring the model, and to take it off."""


def least_waiting_of_all(
    visitors: Sequence[Visitor], done_before: Seconds = 0.0, tolerance_seconds: Seconds = 0.0
) -> Seconds:
    """The least seconds of waiting, summed over all requests, of models that are never on the GPU together.

    ``done_before``: how much of the visits' switches was done before the time begins, because a model was preloaded.
    ``tolerance_seconds``: how far below the greatest such bound the result may be.
    """
    busy = [visitor for visitor in visitors if visitor.ready_at]
    if len(busy) < 2:
        return 0.0
    end = max(visitor.ready_at[-1] for visitor in busy)
    # The first model need not be preceded by an eviction nor the last one be followed by one, and either may lie
    # outside the time that counts.
    there_is = end + max(visitor.switch_seconds for visitor in busy) + done_before
    # The bound is concave in the price: below the line of any plan. These two are the plans at the ends of the range.
    never = _Plan(math.fsum(len(one.ready_at) * end - math.fsum(one.ready_at) for one in busy), 0.0)
    always = _Plan(0.0, math.fsum(one.switch_seconds + end - one.ready_at[0] for one in busy))
    if always.bought <= there_is:
        return 0.0
    best = 0.0
    for _ in range(PRICES_TRIED_MAX):
        price = (never.waiting - always.waiting) / (always.bought - never.bought)
        if always.bound(price, there_is) <= best + tolerance_seconds:
            break
        plans = [_cheapest(visitor, price, end) for visitor in busy]
        plan = _Plan(sum(one.waiting for one in plans), sum(one.bought for one in plans))
        best = max(best, plan.bound(price, there_is))
        if plan.bought > there_is:
            always = plan
        else:
            never = plan
    return best


@dataclass(frozen=True, slots=True)
class _Plan:
    """When models are on the GPU, by themselves or added up."""

    waiting: Seconds
    """Summed over all requests."""
    bought: Seconds

    def bound(self, price: float, there_is: Seconds) -> Seconds:
        """What the plan costs at a price, with the price of all the time that there is given back."""
        return self.waiting + price * (self.bought - there_is)


def _cheapest(visitor: Visitor, price: float, end: Seconds) -> _Plan:
    """The best that one model can do at a price, with requests that are never visited waiting until ``end``."""
    ready_at, switch = visitor.ready_at, visitor.switch_seconds
    arrived = 0.0
    """The sum of the times of all requests so far."""
    hull = _Hull()
    cost, bought, previous = math.inf, 0.0, ready_at[0]
    for count, at in enumerate(ready_at, 1):
        arrived += at
        waiting, bought_before = hull.least(at)
        visited = waiting + count * at - arrived + price * switch
        cost += price * (at - previous)
        bought += at - previous
        if visited < cost:
            cost, bought = visited, bought_before + switch
        previous = at
        hull.add(count, cost + arrived, bought)
    waiting, bought_before = hull.least(end)
    return _Plan(waiting + len(ready_at) * end - arrived - price * bought_before, bought_before)


class _Hull:
    """The lower envelope of the lines ``constant - count * at``, for growing counts and growing times.

    A line is what it costs to have left after ``count`` requests: its cost until then, as far as it does not depend on
    when the model is back. The first one is never to have come.
    """

    __slots__ = ("_bought", "_constants", "_counts", "_first", "_from")

    def __init__(self) -> None:
        self._counts = [0]
        self._constants = [0.0]
        self._bought = [0.0]
        self._from = [-math.inf]
        """From when on each line is lower than the one before it."""
        self._first = 0
        """Those before it are no longer the lowest anywhere."""

    def add(self, count: int, constant: float, bought: Seconds) -> None:
        """Add a line with a higher count than all before."""
        counts, constants, begins = self._counts, self._constants, self._from
        while True:
            lower_from = (constant - constants[-1]) / (count - counts[-1])
            if lower_from > begins[-1] or len(counts) - self._first == 1:
                break
            counts.pop()
            constants.pop()
            begins.pop()
            self._bought.pop()
        counts.append(count)
        constants.append(constant)
        begins.append(lower_from)
        self._bought.append(bought)

    def least(self, at: Seconds) -> tuple[float, Seconds]:
        """The value and the bought seconds of the lowest line at a time no earlier than the last one."""
        begins, first = self._from, self._first
        while first + 1 < len(begins) and begins[first + 1] <= at:
            first += 1
        self._first = first
        return self._constants[first] - self._counts[first] * at, self._bought[first]
