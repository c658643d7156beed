"""How long requests are expected to wait: read from the course that things are expected to take.

It is made when somebody asks, so that it costs nothing while nobody does, and kept for a second at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from llmux.core.expected_course import Course
from llmux.core.expected_model import ExpectedModel
from llmux.core.identifiers import Seconds
from llmux.core.model import Model
from llmux.core.request import Priority, Request
from llmux.core.world import World

COURSE_SECONDS_PER_MODEL: Seconds = 0.02
"""How long a course is kept for each of its models: some fifty times what it takes to make, so that forecasts for all
that arrive cost 2 % of the processor's time."""
NEW_COURSE_SECONDS: Seconds = 0.1
"""The least time between two courses where the last one does not reach what is asked for."""

RIGHT_SHARE = 0.2
RIGHT_SECONDS: Seconds = 1.0
"""How far a forecast may be off and still be right: by this share of the wait, or by so much."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of one request that waits, from now on. docs/scheduling.md says how true that is."""

    admitted_in_seconds: Seconds
    first_token_in_seconds: Seconds


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a client that waits can be told."""

    position: int
    """Of its request in the model's queue, from 1."""
    seconds: Seconds | None
    """How long it will probably still wait; None where nobody can tell."""


class Truth(StrEnum):
    """How a forecast compares with what happened."""

    RIGHT = "right"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"


def judge(forecast_seconds: Seconds, waited_seconds: Seconds) -> Truth:
    """A forecast is right if it is off by at most a fifth of the wait, or a second."""
    off = forecast_seconds - waited_seconds
    if abs(off) <= max(RIGHT_SECONDS, RIGHT_SHARE * waited_seconds):
        return Truth.RIGHT
    return Truth.TOO_SHORT if off < 0 else Truth.TOO_LONG


class Forecaster:
    """Tells for how long requests will probably wait."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._course: Course | None = None

    def of_last(self, model: Model, priority: Priority, now: Seconds) -> Forecast | None:
        """Of a request of a class that has just been queued, or would be now; None where that cannot be foreseen.

        It cannot where an operator or a GPU lease, whose end nobody knows, keeps the model away, or beyond the horizon.
        """
        return self._forecast(model, max(0.0, model.queue.ahead_of(priority) - 1.0), now)

    def outlook(self, request: Request, now: Seconds) -> Outlook | None:
        """Of a request that was queued some time ago; None if it no longer is, or is far back in its queue."""
        model = self._world.models[request.model]
        position = model.queue.position(request) if request in model.queue else None
        if position is None:
            return None
        found = self._forecast(model, position - 1.0, now)
        return Outlook(position, None if found is None else found.admitted_in_seconds)

    def of_heads(self, now: Seconds) -> Mapping[str, Forecast]:
        """Of those that go first, of each model for which any wait."""
        heads = {}
        for model in self._world.models.values():
            if model.is_asked_for and (found := self._forecast(model, 0.0, now)) is not None:
                heads[model.name] = found
        return heads

    def _forecast(self, model: Model, ahead: float, now: Seconds) -> Forecast | None:
        if not self._world.allows(model.name) or self._world.stopping_until is not None or model.spec.is_gpu_lease:
            return None
        course = self._course
        if course is not None and now - course.made_at < COURSE_SECONDS_PER_MODEL * len(course.models):
            found = _read(course.models.get(model.name), ahead, now)
            if found is not None or now - course.made_at < NEW_COURSE_SECONDS:
                return found
        course = self._course = Course(self._world, now, model.name)
        return _read(course.models[model.name], ahead, now)


def _read(expected: ExpectedModel | None, ahead: float, now: Seconds) -> Forecast | None:
    """Of a request with so many before it."""
    for stay in () if expected is None else expected.stays:
        if stay.ends_at <= now:
            continue
        admitted = stay.admitted_until(stay.ends_at)
        if ahead >= admitted:
            ahead -= admitted
            continue
        assert expected is not None
        if ahead < stay.places:
            at, prefills = max(now, stay.begins_at), ahead + 1
        else:
            at, prefills = stay.begins_at + (ahead + 1 - stay.places) / stay.ends_per_second, 1.0
        at = max(now, at)
        return Forecast(at - now, at - now + prefills * expected.prefill_seconds)
    return None
