"""One model as it is expected to be: its requests as numbers, which change at the rates that were seen lately."""

import math
from dataclasses import dataclass

from llmux.core.busy_time import in_flight_after, seconds_until_ended, seconds_until_idle
from llmux.core.identifiers import NOTHING, Footprint, Seconds
from llmux.core.lifecycle import freezes
from llmux.core.model import Model
from llmux.core.placement import less
from llmux.core.settings import Placement
from llmux.core.states import Asleep, Failed
from llmux.core.switch_costs import UNKNOWN_SECONDS
from llmux.core.world import World

LEAST_SECONDS: Seconds = 1e-3
"""No time is taken to be shorter, so that nothing is divided by nothing."""


@dataclass(slots=True)
class Stay:
    """A time for which a model is expected to admit requests: ``places`` at once, and then as others end."""

    begins_at: Seconds
    places: float
    ends_per_second: float
    ends_at: Seconds = math.inf

    def admitted_until(self, at: Seconds) -> float:
        """How many requests it will have admitted by a time, which is not before its beginning."""
        return self.places + self.ends_per_second * max(0.0, min(at, self.ends_at) - self.begins_at)


class ExpectedModel:
    """One model, at the time for which it was updated last."""

    __slots__ = (
        "_updated_at",
        "arrivals_per_second",
        "can_freeze",
        "coming_seconds",
        "frozen",
        "head_since",
        "idle_at",
        "in_flight",
        "last_left_at",
        "last_stay_seconds",
        "leaving_seconds",
        "model",
        "prefill_seconds",
        "queued",
        "remaining_seconds",
        "residence_seconds",
        "since",
        "stays",
        "times",
        "unread",
        "wakes_from",
    )

    def __init__(self, world: World, model: Model, now: Seconds) -> None:
        self.model = model
        self.times = model.estimates.latest()
        self.arrivals_per_second = model.estimates.arrivals_per_second_at(now)
        self.residence_seconds = max(LEAST_SECONDS, _known(self.times.residence_seconds, UNKNOWN_SECONDS))
        self.remaining_seconds = max(LEAST_SECONDS, _known(self.times.remaining_seconds, self.residence_seconds))
        self.prefill_seconds = self.times.prefill_seconds or 0.0
        self.can_freeze = freezes(world, model, model.eviction)
        self.leaving_seconds = world.costs.evict_seconds(model.name) or 0.0
        self.coming_seconds = _coming_seconds(world, model)
        self.queued, self.frozen = float(len(model.queue)), float(len(model.frozen))
        self.in_flight, self.unread = float(len(model.in_flight)), float(len(model.awaiting_first_token))
        self.head_since = model.head_since
        """Since when its oldest request waits; None while none does."""
        self.wakes_from = model.state.retry_at if isinstance(model.state, Failed) else -math.inf
        """Before this it cannot be woken."""
        self.last_left_at = model.last_served_at
        self.last_stay_seconds = model.estimates.stay_seconds
        self.since: Seconds | None = None
        """Since when it serves, or from when on it will; None while it is off the GPUs."""
        self.idle_at: Seconds = math.inf
        """When nothing of it is in flight or queued any more, while it serves."""
        self.stays: list[Stay] = []
        self._updated_at = now

    def update(self, now: Seconds) -> None:
        """Let requests arrive and end until now."""
        elapsed = now - self._updated_at
        if elapsed <= 0:
            return
        self._updated_at = now
        came = self.arrivals_per_second * elapsed
        if self.since is None or self.since > now:
            self.queued += came
            return
        self.unread = max(0.0, self.unread - elapsed / max(self.prefill_seconds, LEAST_SECONDS))
        if self.queued > 0:
            ended = self.in_flight / self.residence_seconds * elapsed
            self.queued = max(0.0, self.queued + came - ended)
        else:
            left = in_flight_after(elapsed, self.in_flight, self.arrivals_per_second, self.residence_seconds)
            self.in_flight = min(left, self.model.spec.max_in_flight)

    def go_on(self, since: Seconds, now: Seconds) -> None:
        """It serves already."""
        self.since, self.head_since = since, None
        self._begin_stay(now, max(0.0, self.model.spec.max_in_flight - self.in_flight))

    def serve_from(self, begins_at: Seconds) -> None:
        """It comes onto the GPUs: what is frozen resumes, and what is queued is admitted."""
        self.update(begins_at)
        most = self.model.spec.max_in_flight
        places = max(0.0, most - self.frozen)
        self.in_flight = max(1.0, min(self.frozen + self.queued, most))
        self.unread += min(self.queued, places)
        self.queued = max(0.0, self.queued - places)
        self.frozen, self.head_since, self.since = 0.0, None, begins_at
        self._begin_stay(begins_at, places)

    def _begin_stay(self, begins_at: Seconds, places: float) -> None:
        ends_per_second = self.in_flight / self.residence_seconds
        self.stays.append(Stay(begins_at, places, ends_per_second))
        self.idle_at = begins_at + seconds_until_idle(
            self.in_flight, self.arrivals_per_second, self.residence_seconds, self.remaining_seconds
        )
        if self.queued > 0:
            falls_by = ends_per_second - self.arrivals_per_second
            self.idle_at += self.queued / falls_by if falls_by > 0 else math.inf

    def leave(self, now: Seconds, drain_timeout_seconds: Seconds) -> Seconds:
        """It leaves the GPUs; returns when it has drained."""
        assert self.since is not None
        drained_at = now
        if not self.is_idle(now):
            if self.can_freeze:
                self.frozen = self.in_flight
            else:
                ended = seconds_until_ended(max(1.0, self.in_flight), self.remaining_seconds)
                drained_at += min(drain_timeout_seconds, ended)
                self.unread = 0.0
        if self.queued > 0 or self.frozen > 0:
            self.head_since = now
        self.stays[-1].ends_at = now
        self.last_stay_seconds = drained_at - self.since
        self.in_flight, self.since, self.last_left_at = 0.0, None, drained_at
        return drained_at

    def is_idle(self, now: Seconds) -> bool:
        """Whether nothing is expected to be in flight or queued any more, of one that serves."""
        return now >= self.idle_at

    def asked_for_from(self) -> Seconds:
        """Since when it waits to be woken, or, while nobody asks for it, from when on it is expected to."""
        if self.head_since is None:
            if self.arrivals_per_second <= 0:
                return math.inf
            self.head_since = self._updated_at + math.log(2.0) / self.arrivals_per_second
        return max(self.head_since, self.wakes_from)

    def changes_at(self, now: Seconds) -> Seconds:
        """When it is asked for or, where it is on the GPUs, serves or becomes idle."""
        if self.since is None:
            return self.asked_for_from()
        return self.since if self.since > now else self.idle_at

    @property
    def waiting(self) -> int:
        """How many requests wait for it while it is off the GPUs."""
        return max(1, round(self.queued + self.frozen))

    def admits_all(self, now: Seconds) -> bool:
        """Whether all that is queued for the real model, and one more, will have been admitted by now."""
        admitted = sum(stay.admitted_until(now) for stay in self.stays if stay.begins_at <= now)
        return admitted > self.model.queue.size

    def lacks(self, placement: Placement) -> Footprint:
        """The memory that it must be given to come there."""
        return placement.awake if self.model.starts_cold else less(placement.awake, self._residue)

    @property
    def frees(self) -> Footprint:
        """The memory that its leaving gives back."""
        return less(self.model.awake, self._residue)

    @property
    def _residue(self) -> Footprint:
        if isinstance(self.model.state, Asleep):
            return self.model.held
        return self.model.placement.residue(self.model.eviction) if self.model.placement.asleep else NOTHING


def _known(seconds: Seconds | None, otherwise: Seconds) -> Seconds:
    return otherwise if seconds is None else seconds


def _coming_seconds(world: World, model: Model) -> Seconds:
    costs = world.costs
    if model.starts_cold or not model.eviction.keeps_process:
        known = model.start_seconds
    else:
        left_by = model.state.eviction if isinstance(model.state, Asleep) else model.eviction
        known = costs.to_return(model.name, left_by)
        known = costs.wake_seconds(model.name) if known is None else known
    return _known(known, UNKNOWN_SECONDS)
