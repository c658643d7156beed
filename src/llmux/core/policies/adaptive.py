"""Turns that are long enough to pay for their switch and for what they interrupt, and no longer."""

import math
from dataclasses import dataclass

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Candidate, Choice, Incumbent, PolicyView, Stay
from llmux.core.switch_costs import UNKNOWN_SECONDS

SPARE_SHARE, SPARE_SHARE_MAX = 0.7, 0.55
"""How much of the time that the demand leaves over may be spent switching, and of all time in any case."""

SHORT_ANSWERS_SHARE = 0.7
"""How much of that, where answers are short against a switch: then little is won by interrupting them."""

ANSWERS_PER_ROUND = 1.5
"""How many answers one after the other a turn lasts at least where many models wait: an interrupted answer goes on only
when all of them have had their turn."""

FREEZING_QUANTA_MAX, ANSWERS_MAX, ANSWERS_MIN_SECONDS = 4, 3, 20.0
"""A model that can freeze may stay for so many quanta, for as long as so many answers take one after the other, or for
so long, whichever is longest."""

DRAINING_QUANTA_MAX = 10
"""How many quanta one that has to drain may stay: its leaving keeps the GPU from everybody."""

NEARLY_IDLE_MAX = 1.5
"""A model of whose requests no more are in flight at a time is idle by itself soon: by chance, in a fifth of the time.
Until then it need not shut anybody out, as a drain does."""

CATCHING_UP_MAX_SECONDS: Seconds = 120.0
CATCHING_UP_MAX_QUANTA = 3
"""Nobody stays longer than that with others waiting, whichever is longer."""

READING_AGAIN_SHARE = 0.35
"""How much reading a second of staying must save (as answers end that would be frozen and read again) to be worth it.
"""

LOOK_EVERY_SECONDS: Seconds = 0.25
"""How often it is asked whether it has caught up: beginnings and ends of answers bring no decision by themselves."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Preempts after a quantum in proportion to the switch's cost, and later where the model has fallen behind.

    A model stays until everybody who asked for it has had a first token: reading prompts is what an engine does one
    after the other, and what others wait for. Then it stays as long as that saves more than it delays.
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

    def quantum_seconds(self, leaving: Incumbent, coming: str, view: PolicyView, now: Seconds) -> Seconds:
        """See ``Policy``."""
        quantum = self._quantum(_cost(view, leaving, coming), leaving)
        most = max(CATCHING_UP_MAX_SECONDS, CATCHING_UP_MAX_QUANTA * quantum)
        quantum = max(quantum, min(CATCHING_UP_MAX_SECONDS, _round_of_answers(leaving)))
        # What drains goes on working: that is a part of its turn, and others wait for it.
        least = quantum if leaving.can_freeze else max(0.0, quantum - leaving.drain_seconds)
        longest = min(most, _catching_up(quantum, leaving))
        # Compared as the caller will: the difference of two times is not exactly what was added to the first.
        if now < leaving.since + least or now >= leaving.since + longest or not _is_behind(leaving):
            return least
        return min(longest, now - leaving.since + LOOK_EVERY_SECONDS)

    def quantum_max_seconds(self, longest_switch_seconds: Seconds) -> Seconds:
        """See ``Policy``."""
        longest_quantum = max(longest_switch_seconds, UNKNOWN_SECONDS) * _turn_per_switch(self.switch_share_max)
        return max(CATCHING_UP_MAX_SECONDS, CATCHING_UP_MAX_QUANTA * longest_quantum)

    def _quantum(self, cost: Seconds, leaving: Incumbent) -> Seconds:
        """How long a turn must be so that switching takes no more than its share of turn and switch together."""
        demand = leaving.demand
        spare = min(SPARE_SHARE_MAX, SPARE_SHARE * (1 - demand.load)) / max(1, demand.waiting_models)
        if demand.residence_seconds < cost:
            spare *= SHORT_ANSWERS_SHARE + (1 - SHORT_ANSWERS_SHARE) * demand.residence_seconds / cost
        return cost * _turn_per_switch(max(self.switch_share_max, spare))

    def _due_at(self, leaving: Incumbent, candidate: Candidate, view: PolicyView, now: Seconds) -> Seconds:
        if leaving.idle_since is not None:
            return now
        return leaving.since + self.quantum_seconds(leaving, candidate.model, view, now)


def _round_of_answers(leaving: Incumbent) -> Seconds:
    """How long a turn must be so that few answers are interrupted for a whole round of those who wait."""
    if not leaving.can_freeze or leaving.residence_seconds is None or leaving.demand.waiting_models < 2:
        return 0.0
    return ANSWERS_PER_ROUND * (1 - 1 / leaving.demand.waiting_models) * leaving.residence_seconds


def _catching_up(quantum: Seconds, leaving: Incumbent) -> Seconds:
    """How long a model that has fallen behind may stay."""
    if not leaving.can_freeze:
        return DRAINING_QUANTA_MAX * quantum
    answers = ANSWERS_MAX * (leaving.residence_seconds or 0.0)
    return max(FREEZING_QUANTA_MAX * quantum, answers, ANSWERS_MIN_SECONDS)


def _is_behind(leaving: Incumbent) -> bool:
    """Whether it is worth staying: for first tokens, to spare reading again, or to spare a drain."""
    if leaving.awaiting_first_token + leaving.queue_depth > 0:
        return True
    residence_seconds = leaving.residence_seconds
    if not residence_seconds:
        return False
    if not leaving.can_freeze:
        return leaving.arrivals_per_second * residence_seconds <= NEARLY_IDLE_MAX
    reading_again = leaving.in_flight * (leaving.prefill_seconds or 0.0) / residence_seconds
    return reading_again > READING_AGAIN_SHARE


def _turn_per_switch(share: float) -> float:
    return 1 / share - 1


def _cost(view: PolicyView, leaving: Incumbent, coming: str) -> Seconds:
    """What the switch takes; nothing as long as that is not known, for it is learnt by switching."""
    return view.known_cost(leaving.model, coming) or 0.0


def _worth(candidate: Candidate, cost: Seconds, now: Seconds) -> float:
    """Weighted work per switch, and the older the better."""
    waited = now - candidate.head_arrived_at
    return candidate.weight * candidate.queue_depth * (waited + 1) / (cost + 1)
