"""Says when more is asked of the GPUs than they can do: when requests go on coming that will probably time out."""

import math
from collections.abc import Callable

import structlog

from llmux.core.identifiers import Seconds

EPISODE_SECONDS: Seconds = 60.0
"""How long such requests come, with no gap as long as that, until it is an episode: a burst is none."""

log = structlog.get_logger("llmux.overload")


class Overload:
    """Told of each request that is queued, or refused for its forecast, it needs no timer."""

    def __init__(
        self, timeout_seconds: Seconds, now: Callable[[], Seconds], measure: Callable[[Seconds], float | None]
    ) -> None:
        """``timeout_seconds``: of requests without a time-out of their own. ``measure``: the offered load at a time."""
        self._measure = measure
        self._timeout_seconds = timeout_seconds
        self._now = now
        self._began_at: Seconds = -math.inf
        self._last_at: Seconds = -math.inf
        self._is_told = False
        self.episodes = 0

    def note(self, model: str, forecast_seconds: Seconds | None, own_timeout_seconds: Seconds | None) -> None:
        """A request has come that is expected to wait for so long."""
        self._measure(self._now())  # Keeps its sums up to date: it may be long until somebody asks.
        limit = self._timeout_seconds if own_timeout_seconds is None else own_timeout_seconds
        if forecast_seconds is not None and forecast_seconds > limit:
            self.late(model, forecast_seconds)

    def late(self, model: str, forecast_seconds: Seconds) -> None:
        """A request has come that would wait for too long."""
        now = self._now()
        if now - self._last_at >= EPISODE_SECONDS:
            self._began_at, self._is_told = now, False
        self._last_at = now
        if not self._is_told and now - self._began_at >= EPISODE_SECONDS:
            self._is_told = True
            self.episodes += 1
            offered_load = self._measure(now)
            log.warning(
                "more is asked of the GPUs than they can do: requests will time out, or are refused",
                model=model,
                offered_load=None if offered_load is None else round(offered_load, 2),
                expected_wait_seconds=round(forecast_seconds),
                remedy="fewer models or clients at a time, drain: freeze, GPUs; policy.refuse_after_seconds tells "
                "clients at once",
            )

    @property
    def offered_load(self) -> float | None:
        """What is asked of the GPUs, as a multiple of what they can do; None before enough was seen."""
        return self._measure(self._now())

    @property
    def seconds(self) -> Seconds | None:
        """For how long the present episode has lasted; None while there is none."""
        now = self._now()
        return now - self._began_at if self._is_told and now - self._last_at < EPISODE_SECONDS else None
