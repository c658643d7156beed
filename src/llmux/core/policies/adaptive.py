"""Turns that are long enough to pay for their switch and for what they interrupt, and no longer."""

import math
from dataclasses import dataclass

from llmux.core.identity import Seconds
from llmux.core.policies.base import Bring, Candidate, Choice, Incumbent, PolicyView, Stay
from llmux.core.switch_costs import UNKNOWN_SECONDS

CATCHING_UP_MAX_SECONDS: Seconds = 120.0
CATCHING_UP_MAX_QUANTA = 3
"""How long a model may stay to catch up with what came while it was away, whichever is longer."""

GROWTH_MAX = 4
"""How much longer than its last turn a model that is preempted may stay to catch up: one burst is no trend."""

LOOK_EVERY_SECONDS: Seconds = 0.25
"""How often it is asked whether it has caught up: ends of requests are not told one by one."""

BACKLOG_SHARE = 0.5
"""How much more than usual may be left over at the end of a turn, where turns follow each other as fast as allowed."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Preempts after a quantum in proportion to the switch's cost, and later where the model has fallen behind.

    Leaving interrupts what is in flight (it is frozen and has to be read again, or everybody waits for it to end). So a
    model stays until little more is left over than is in flight at any time anyway, arrivals × service time. How much
    more falls with the length of the cycle: the higher the load, the less may be wasted.
    """

    switch_share_max: float = 0.25

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        """See ``Policy``."""
        earliest, best, wanted = math.inf, -math.inf, ""
        for candidate in view.candidates():
            incumbents = view.in_the_way(candidate)
            due_at = max((self._due_at(leaving, candidate, view, now) for leaving in incumbents), default=-math.inf)
            if due_at > now:
                earliest = min(earliest, due_at)
                continue
            cost = max((_cost(view, leaving, candidate.model) for leaving in incumbents), default=0.0)
            worth = _worth(candidate, cost, now)
            if worth > best:
                best, wanted = worth, candidate.model
        return Bring(wanted) if wanted else Stay(earliest)

    def turn_seconds(self, leaving: Incumbent, coming: str, view: PolicyView, now: Seconds) -> Seconds:
        """See ``Policy``."""
        cost = _cost(view, leaving, coming)
        quantum, elapsed = self._quantum(cost), now - leaving.since
        # What drains goes on working: that is a part of its turn, and others wait for it.
        least = quantum if leaving.can_freeze else max(0.0, quantum - leaving.drain_seconds)
        longest = self._longest(quantum, leaving)
        if elapsed < least or elapsed >= longest or leaving.service_seconds is None:
            return least
        usual = leaving.arrivals_per_second * leaving.service_seconds
        shortest_cycle = 2 * (quantum + cost)
        cycle = leaving.absent_seconds + elapsed
        share = BACKLOG_SHARE * shortest_cycle / cycle if cycle > 0 else BACKLOG_SHARE
        # One request more or less, and as much again as chance makes of it, say nothing.
        allowed = (1 + share) * usual + math.sqrt(usual) + 1
        if leaving.in_flight + leaving.queue_depth <= allowed:
            return least
        return min(longest, elapsed + LOOK_EVERY_SECONDS)

    def longest_turn_seconds(self, longest_switch_seconds: Seconds) -> Seconds:
        """See ``Policy``."""
        quantum = self._quantum(max(longest_switch_seconds, UNKNOWN_SECONDS))
        return max(CATCHING_UP_MAX_SECONDS, CATCHING_UP_MAX_QUANTA * quantum)

    def _longest(self, quantum: Seconds, leaving: Incumbent) -> Seconds:
        longest = max(CATCHING_UP_MAX_SECONDS, CATCHING_UP_MAX_QUANTA * quantum)
        if leaving.can_freeze:
            longest = min(longest, max(quantum, GROWTH_MAX * leaving.last_turn_seconds))
        return longest

    def _quantum(self, cost: Seconds) -> Seconds:
        """How long a turn must be so that switching takes the allowed share of turn and switch together."""
        return cost * (1 / self.switch_share_max - 1)

    def _due_at(self, leaving: Incumbent, candidate: Candidate, view: PolicyView, now: Seconds) -> Seconds:
        if leaving.idle_since is None:
            return leaving.since + self.turn_seconds(leaving, candidate.model, view, now)
        cost = _cost(view, leaving, candidate.model)
        # Idle, but if somebody is likely to come before the switch is over, the turn is used up.
        return leaving.since + self._quantum(cost) if leaving.arrivals_per_second * cost > 1 else now


def _cost(view: PolicyView, leaving: Incumbent, coming: str) -> Seconds:
    """What the switch takes; nothing as long as that is not known, for it is learnt by switching."""
    return view.known_cost(leaving.model, coming) or 0.0


def _worth(candidate: Candidate, cost: Seconds, now: Seconds) -> float:
    """Weighted work per switch, and the older the better."""
    waited = now - candidate.head_arrived_at
    return candidate.weight * candidate.queue_depth * (waited + 1) / (cost + 1)
