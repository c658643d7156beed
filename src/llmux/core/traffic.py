"""What a model's requests have been like lately, and how much of an engine's time they need."""

import math

from llmux.core.identity import Seconds

RATE_MEMORY_SECONDS: Seconds = 60.0
"""Arrivals this long ago count for a third."""

SERVICE_MEMORY_SECONDS: Seconds = 120.0
"""What was seen this long ago, counted in time on the GPU, counts for a third."""

SEEN_MIN = 2.0
"""Fewer requests than this say nothing about how long they take."""

DRAIN_SHARE = 0.3
"""How much a new drain counts."""


class Traffic:
    """Counts what comes and goes, and sums up the time between; the ratios of the sums are what is learnt.

    ``pass_time`` is called before each change of what is in flight, ``look`` now and then. So a request costs a few
    additions.
    """

    __slots__ = (
        "_answered",
        "_behind_seconds",
        "_counted",
        "_counted_at",
        "_ended",
        "_held_seconds",
        "_passed_seconds",
        "_since",
        "answered",
        "arrived",
        "drain_seconds",
        "ended",
        "rate",
    )

    def __init__(self) -> None:
        self.arrived = 0
        """All requests so far that were admitted or queued."""
        self.answered = 0
        """Requests whose answer began since the last look."""
        self.ended = 0
        """Requests that ended since the last look."""
        self.rate = 0.0
        """Arrivals a second."""
        self.drain_seconds: Seconds = 0.0
        self._counted = 0
        self._counted_at: Seconds | None = None
        self._since: Seconds = 0.0
        self._passed_seconds: Seconds = 0.0
        self._held_seconds = self._behind_seconds = 0.0
        self._ended = self._answered = 0.0

    @property
    def service_seconds(self) -> Seconds | None:
        """How long a request is in flight; None: not known yet. By Little's law: request-seconds by ends."""
        return self._held_seconds / self._ended if self._ended >= SEEN_MIN else None

    @property
    def reading_seconds(self) -> Seconds | None:
        """How much of the engine's time a request takes until its answer begins; None: not known yet.

        The time in which anybody waited for the first token, by the answers that began: however many an engine reads
        at once, that is how fast it gets on.
        """
        return self._behind_seconds / self._answered if self._answered >= SEEN_MIN else None

    @property
    def load(self) -> float:
        """The part of the engine's time that the arrivals need until their answers begin; 0 as long as nobody knows."""
        return self.rate * (self.reading_seconds or 0.0)

    def resume(self, now: Seconds) -> None:
        """The model serves from now on; what was before is not counted."""
        self._since = now

    def pass_time(self, in_flight: int, is_behind: bool, now: Seconds) -> None:
        """So many were in flight until now, since the last call; somebody waited for a first token or for a place."""
        elapsed = now - self._since
        self._since = now
        self._passed_seconds += elapsed
        self._held_seconds += in_flight * elapsed
        if is_behind:
            self._behind_seconds += elapsed

    def look(self, now: Seconds) -> None:
        """Bring what is learnt up to date."""
        if self._counted_at is None:
            self._counted_at = now
        elapsed = now - self._counted_at
        if elapsed < 1.0:
            return
        share = -math.expm1(-elapsed / RATE_MEMORY_SECONDS)
        self.rate += share * ((self.arrived - self._counted) / elapsed - self.rate)
        self._counted, self._counted_at = self.arrived, now
        self._forget()

    def drained(self, seconds: Seconds) -> None:
        """A drain has ended."""
        self.drain_seconds += DRAIN_SHARE * (seconds - self.drain_seconds)

    def _forget(self) -> None:
        self._ended += self.ended
        self._answered += self.answered
        self.ended = self.answered = 0
        kept = math.exp(-self._passed_seconds / SERVICE_MEMORY_SECONDS)
        self._passed_seconds = 0.0
        self._held_seconds *= kept
        self._behind_seconds *= kept
        self._ended *= kept
        self._answered *= kept
