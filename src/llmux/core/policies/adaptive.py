"""Quanta long enough to pay for the switch and for what it interrupts, and no longer.

docs/scheduling.md derives the rules. The constants were chosen on bench/policies (Azure 2023 traces, seeds 1 to 4);
most of them can be changed by a fifth to a third without moving more than one row of its table.
"""

import math
from dataclasses import dataclass

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Candidate, Choice, Incumbent, PolicyView, Stay
from llmux.core.switch_costs import UNKNOWN_SECONDS

SPARE_SHARE, SPARE_SHARE_MAX = 0.7, 0.55
"""The share of the time left over by demand that may be spent switching, and the most of all time."""

SHORT_ANSWERS_SHARE = 0.7
"""The part of that share where answers are short against a switch: interrupting them wins little."""

ANSWERS_PER_ROUND = 1.5
"""The least quantum, in residence times, where many models wait: an interrupted answer resumes only after a round."""

FREEZING_QUANTA_MAX, ANSWERS_MAX, ANSWERS_MIN_SECONDS = 4, 3, 20.0
"""The most that a model which can freeze stays, in quanta, in residence times and in seconds, whichever is longest."""

DRAINING_QUANTA_MAX = 10
"""The most that a model which must drain stays, in quanta: longer, because its leaving stalls the GPU."""

NEARLY_IDLE_MAX = 1.5
"""A model with no more than this in flight on average is soon idle by itself: Poisson, P(idle) = e^-1.5 = 0.22."""

CATCHING_UP_MAX_SECONDS: Seconds = 120.0
CATCHING_UP_MAX_QUANTA = 3
"""No model stays longer than either, whichever is longer, while others wait. Part of the wait bound."""

RECOMPUTE_SHARE = 0.35
"""Staying a second must save this much recompute (answers end that would otherwise be frozen) to be worth it."""

CHECK_INTERVAL_SECONDS: Seconds = 0.25
"""How often a model that is behind is checked again: first tokens and ends of answers cause no decision themselves."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Preempts after a quantum in proportion to the switch's cost, and later where the model is behind.

    A model stays until every request for it has had its first token, since prefill is serial and others wait for it.
    Then it stays as long as that saves more recompute than it delays others.
    """

    switch_share_max: float = 0.25

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        earliest, best, wanted = math.inf, -math.inf, ""
        for candidate in view.candidates():
            incumbents = view.in_the_way(candidate)
            due_at = max((self._due_at(leaving, candidate, view, now) for leaving in incumbents), default=-math.inf)
            if due_at > now:
                earliest = min(earliest, due_at)
                continue
            cost = max((_cost(view, leaving, candidate.model) for leaving in incumbents), default=0.0)
            value = _value(candidate, cost, now)
            if value > best:
                best, wanted = value, candidate.model
        return Bring(wanted) if wanted else Stay(earliest)

    def quantum_seconds(self, leaving: Incumbent, coming: str, view: PolicyView, now: Seconds) -> Seconds:
        quantum = self._quantum(_cost(view, leaving, coming), leaving)
        most = max(CATCHING_UP_MAX_SECONDS, CATCHING_UP_MAX_QUANTA * quantum)
        quantum = max(quantum, min(CATCHING_UP_MAX_SECONDS, _round_of_answers(leaving)))
        # A draining model goes on working while others wait: its drain is a part of its quantum.
        least = quantum if leaving.can_freeze else max(0.0, quantum - leaving.drain_seconds)
        longest = min(most, _catching_up(quantum, leaving))
        # Compared as the caller does: (since + least) - since need not equal least in floating point.
        if now < leaving.since + least or now >= leaving.since + longest or not _is_behind(leaving):
            return least
        return min(longest, now - leaving.since + CHECK_INTERVAL_SECONDS)

    def quantum_max_seconds(self, longest_switch_seconds: Seconds) -> Seconds:
        longest_quantum = max(longest_switch_seconds, UNKNOWN_SECONDS) * _quantum_per_switch(self.switch_share_max)
        return max(CATCHING_UP_MAX_SECONDS, CATCHING_UP_MAX_QUANTA * longest_quantum)

    def _quantum(self, cost: Seconds, leaving: Incumbent) -> Seconds:
        """The quantum with which switching takes its share of the time: cost / (quantum + cost) = share."""
        demand = leaving.demand
        spare = min(SPARE_SHARE_MAX, SPARE_SHARE * (1 - demand.load)) / max(1, demand.waiting_models)
        if demand.residence_seconds < cost:
            spare *= SHORT_ANSWERS_SHARE + (1 - SHORT_ANSWERS_SHARE) * demand.residence_seconds / cost
        return cost * _quantum_per_switch(max(self.switch_share_max, spare))

    def _due_at(self, leaving: Incumbent, candidate: Candidate, view: PolicyView, now: Seconds) -> Seconds:
        if leaving.idle_since is not None:
            return now
        return leaving.since + self.quantum_seconds(leaving, candidate.model, view, now)


def _round_of_answers(leaving: Incumbent) -> Seconds:
    """The quantum with which few answers are interrupted for a whole round of the waiting models."""
    if not leaving.can_freeze or leaving.residence_seconds is None or leaving.demand.waiting_models < 2:
        return 0.0
    return ANSWERS_PER_ROUND * (1 - 1 / leaving.demand.waiting_models) * leaving.residence_seconds


def _catching_up(quantum: Seconds, leaving: Incumbent) -> Seconds:
    """How long a model that is behind may stay."""
    if not leaving.can_freeze:
        return DRAINING_QUANTA_MAX * quantum
    answers = ANSWERS_MAX * (leaving.residence_seconds or 0.0)
    return max(FREEZING_QUANTA_MAX * quantum, answers, ANSWERS_MIN_SECONDS)


def _is_behind(leaving: Incumbent) -> bool:
    """Whether staying pays: for first tokens, to save recompute, or to become idle without a drain."""
    if leaving.awaiting_first_token + leaving.queue_depth > 0:
        return True
    residence_seconds = leaving.residence_seconds
    if not residence_seconds:
        return False
    if not leaving.can_freeze:
        return leaving.arrivals_per_second * residence_seconds <= NEARLY_IDLE_MAX
    recompute = leaving.in_flight * (leaving.prefill_seconds or 0.0) / residence_seconds
    return recompute > RECOMPUTE_SHARE


def _quantum_per_switch(share: float) -> float:
    return 1 / share - 1


def _cost(view: PolicyView, leaving: Incumbent, coming: str) -> Seconds:
    """The switch's cost; 0 while unknown, because only switching tells."""
    return view.known_cost(leaving.model, coming) or 0.0


def _value(candidate: Candidate, cost: Seconds, now: Seconds) -> float:
    """Weighted work per second of switching, growing with the head's age. The added seconds avoid zeros."""
    waited = now - candidate.head_arrived_at
    return candidate.weight * candidate.queue_depth * (waited + 1) / (cost + 1)
