"""Two rules for when a busy model leaves: one where its requests can be frozen, one where they must end first.

docs/scheduling.md derives them; bench/policies has what each constant is worth.
"""

import math
from dataclasses import dataclass

from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Candidate, Choice, Incumbent, PolicyView, Stay, Waiting
from llmux.core.switch_costs import UNKNOWN_SECONDS

FREEZING_STAY_MAX_SECONDS: Seconds = 240.0
DRAINING_STAY_MAX_SECONDS: Seconds = 120.0
STAY_MAX_SWITCHES = 3
"""No model stays longer while others wait, or than so many switches take if that is longer. They enter the wait bound:
a model that must drain may take as long again for that (``drain_timeout_seconds``)."""

STAY_PER_LEAVE = 8
"""Where models must drain, at most a ninth of the GPU's time goes into leaving: a stay is so many times as long."""

WAITING_SHARE = 0.5
"""What a second means to a request that waits, compared with a second of a pause in an answer that somebody reads: less
makes first tokens later and answers smoother."""

PATIENCE_SHARE = 0.9
"""Within this share of its time-out each that waits is to be served; the rest is for errors in how long others stay."""

LOOK_AGAIN_SECONDS_MIN: Seconds = 0.05
"""Bounds how often a decision is made for the sake of first tokens alone, which take milliseconds in small models."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Lets a busy model stay for as long as that serves more than it delays.

    Nothing is polled: what keeps a model is expected to be over at some time, and is looked at again then.
    """

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        earliest, best, wanted = math.inf, -math.inf, ""
        for candidate in view.candidates():
            incumbents = view.in_the_way(candidate)
            due_at = -math.inf
            for leaving in incumbents:
                if leaving.idle_since is None:
                    ends_at = leaving.since + self.quantum_seconds(leaving, candidate.model, view, now)
                    due_at = ends_at if ends_at > due_at else due_at
            if due_at > now:
                earliest = due_at if due_at < earliest else earliest
                continue
            cost = max([view.known_cost(leaving.model, candidate.model) or 0.0 for leaving in incumbents], default=0.0)
            value = _value(candidate, cost, now)
            if value > best:
                best, wanted = value, candidate.model
        return Bring(wanted) if wanted else Stay(earliest)

    def quantum_seconds(self, leaving: Incumbent, coming: str, view: PolicyView, now: Seconds) -> Seconds:
        switch = view.known_cost(leaving.model, coming) or 0.0  # Only switching tells.
        most = _most(switch, can_freeze=leaving.can_freeze)
        residence = leaving.residence_seconds
        if not leaving.can_freeze:
            # Its requests end after the longest of n times, each with a mean of the residence time.
            drain = (UNKNOWN_SECONDS if residence is None else residence) * math.log1p(leaving.in_flight)
            stay = STAY_PER_LEAVE * (switch + drain)
            return stay if stay < most else most
        if residence is None:
            # Answers that take longer than it has been here have not been seen to end.
            residence = max(UNKNOWN_SECONDS, now - leaving.since)
        turn = min(most, max(residence, math.sqrt(2 * residence * switch)))
        # Compared as the caller does: (since + turn) - since need not equal turn in floating point.
        if now < leaving.since + turn:
            return turn
        worth = _worth_staying_seconds(leaving, view, residence, switch)
        if worth > 0 and not leaving.queue_depth:
            # One with more requests than places has too much to do: whom leaving saves, it costs others of its own.
            most = min(most, _leaves_in_time_at(view.waiting_for(leaving.model), switch) - leaving.since)
        return max(turn, min(most, now - leaving.since + worth))

    def quantum_max_seconds(self, longest_switch_seconds: Seconds, *, can_freeze: bool) -> Seconds:
        return _most(longest_switch_seconds, can_freeze=can_freeze)


def _most(switch: Seconds, *, can_freeze: bool) -> Seconds:
    most = FREEZING_STAY_MAX_SECONDS if can_freeze else DRAINING_STAY_MAX_SECONDS
    return most if STAY_MAX_SWITCHES * switch < most else STAY_MAX_SWITCHES * switch


def _leaves_in_time_at(waiting: Waiting, switch: Seconds) -> Seconds:
    """Until when a model can stay so that nobody who waits times out, if each of them stays as long as last time."""
    latest, until_served = math.inf, switch
    for one in waiting.each:
        latest = min(latest, one.since + PATIENCE_SHARE * one.patience_seconds - until_served)
        until_served += one.last_stay_seconds + switch
    return latest


def _worth_staying_seconds(leaving: Incumbent, view: PolicyView, residence: Seconds, switch: Seconds) -> Seconds:
    """For how long from now staying probably pays; negative infinity if it does not.

    It does while anybody waits for a first token, because prefill is serial and others wait for it. Then it does while
    the answers in flight get fewer, so that leaving interrupts fewer of them, and that saves more than it costs others.
    """
    prefill = leaving.prefill_seconds or 0.0
    unread = leaving.awaiting_first_token + leaving.queue_depth
    if unread:
        return max(unread * prefill, LOOK_AGAIN_SECONDS_MIN)
    waiting, pause = view.waiting_for(leaving.model), leaving.pause_seconds
    if pause is None:
        pause = waiting.models * UNKNOWN_SECONDS + (waiting.models + 1) * switch
    # Of n in flight, n / residence end per second, and new ones come. Each one fewer saves its own pause, and its
    # recompute for everybody who waits; each second costs everybody who waits a second.
    saved_by_each = leaving.weight * pause + prefill * waiting.requests
    pays_per_second = WAITING_SHARE * waiting.requests / saved_by_each if saved_by_each else math.inf
    least = residence * (leaving.arrivals_per_second + pays_per_second)
    if leaving.in_flight <= least:
        return -math.inf
    # n falls towards the rate of arrivals by the factor e in every residence time: until then it may not be above.
    falls = math.log(leaving.in_flight / least) if least else 1.0
    return max(residence * falls, residence / leaving.in_flight)


def _value(candidate: Candidate, switch: Seconds, now: Seconds) -> float:
    """Weighted work per second of switching, growing with the head's age. The added seconds avoid zeros."""
    waited = now - candidate.head_arrived_at
    return candidate.weight * candidate.queue_depth * (waited + 1) / (switch + 1)
