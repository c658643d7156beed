"""The scheduler's forecasts, guarded: a fault in one must cost no request."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog

from llmux.core.forecast import Forecast, Outlook
from llmux.core.identifiers import Seconds
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler

T = TypeVar("T")

log = structlog.get_logger("llmux.forecasts")


class Forecasts:
    """Asks the scheduler, and answers as if nobody could tell where that fails: logged once for each kind of error."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._logged: set[type[Exception]] = set()

    def note(self, request: Request, now: Seconds) -> None:
        """Note in a request that has just been queued how long it will probably wait."""
        self._guarded(lambda: self._scheduler.note_forecast(request, now), None)

    def wait_seconds(self, request: Request, now: Seconds) -> Seconds | None:
        """How long a request like this one that comes now will probably wait; None where nobody can tell."""
        found = self._guarded(lambda: self._scheduler.forecast(request, now), None)
        return None if found is None else found.admitted_in_seconds

    def outlook(self, request: Request, now: Seconds) -> Outlook | None:
        """What the client of a queued request can be told; None if it is not queued, or far back."""
        return self._guarded(lambda: self._scheduler.outlook(request, now), None)

    def of_heads(self, now: Seconds) -> Mapping[str, Forecast]:
        """How long the request that goes first will probably wait, of the models for which any wait."""
        return self._guarded(lambda: self._scheduler.forecasts(now), {})

    def offered_load(self, now: Seconds) -> float | None:
        """What is asked of the GPUs, as a multiple of what they can do; None where nobody can tell."""
        return self._guarded(lambda: self._scheduler.offered_load(now), None)

    def _guarded(self, ask: Callable[[], T], otherwise: T) -> T:
        try:
            return ask()
        except Exception as error:
            if type(error) not in self._logged:
                self._logged.add(type(error))
                log.exception("a forecast failed: requests are served, but nobody is told how long they will wait")
            return otherwise
