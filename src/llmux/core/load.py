"""What a model's requests have been like lately, and how much of an engine's time they need."""

import math

from llmux.core.identifiers import Seconds

RATE_MEMORY_SECONDS: Seconds = 60.0
"""Arrivals this long ago count for a third."""

SERVICE_MEMORY_SECONDS: Seconds = 120.0
"""What was seen this long ago, counted in time with something in flight, counts for a third."""

SEEN_MIN = 2.0
"""Fewer requests than this say nothing about how long they take."""

DRAIN_SHARE = 0.3
"""How much a new drain counts."""


class _Mean:
    """Seconds per something, over what was seen lately: two sums of which the older part fades."""

    __slots__ = ("_count", "_seconds", "new_count", "new_seconds")

    def __init__(self) -> None:
        self._seconds = self._count = 0.0
        self.new_seconds = 0.0
        self.new_count = 0

    def fade(self, kept: float) -> None:
        """Let so much remain of what was seen before, and add what is new."""
        self._seconds = kept * self._seconds + self.new_seconds
        self._count = kept * self._count + self.new_count
        self.new_seconds = 0.0
        self.new_count = 0

    @property
    def value(self) -> Seconds | None:
        """The mean; None: not enough has been seen."""
        return self._seconds / self._count if self._count >= SEEN_MIN else None


class LoadEstimator:
    """Counts what comes and goes, and sums up the time between; the ratios of the sums are what is learnt.

    ``pass_time`` is called before each change of what is in flight, ``look`` now and then. So a request costs a few
    additions.
    """

    __slots__ = (
        "_counted",
        "_counted_at",
        "_passed_seconds",
        "_reading",
        "_service",
        "_since",
        "arrived",
        "drain_seconds",
        "rate",
    )

    def __init__(self) -> None:
        self.arrived = 0
        """All requests so far that were admitted or queued."""
        self.rate = 0.0
        """Arrivals a second."""
        self.drain_seconds: Seconds = 0.0
        self._counted = 0
        self._counted_at: Seconds | None = None
        self._since: Seconds = 0.0
        self._passed_seconds: Seconds = 0.0
        self._service, self._reading = _Mean(), _Mean()

    @property
    def residence_seconds(self) -> Seconds | None:
        """How long a request is in flight; None: not known yet. By Little's law: request-seconds by ends."""
        return self._service.value

    @property
    def prefill_seconds(self) -> Seconds | None:
        """How much of the engine's time a request takes until its answer begins; None: not known yet.

        The time in which anybody waited for the first token, by the answers that began: however many an engine reads
        at once, that is how fast it gets on.
        """
        return self._reading.value

    @property
    def load(self) -> float:
        """The part of the engine's time that arrivals need until their answers begin; all, while nobody knows."""
        if self._reading.value is not None:
            return self.rate * self._reading.value
        if self._service.value is not None:
            # Nobody streams: no more than that it is, and all at the most.
            return min(1.0, self.rate * self._service.value)
        return 1.0

    def resume(self, now: Seconds) -> None:
        """The model serves from now on; what was before is not counted."""
        self._since = now
        self.look(now)

    def pass_time(self, in_flight: int, is_behind: bool, now: Seconds) -> None:
        """So many were in flight until now, since the last call; somebody waited for a first token or for a place."""
        elapsed = now - self._since
        self._since = now
        if in_flight:
            self._passed_seconds += elapsed
        self._service.new_seconds += in_flight * elapsed
        if is_behind:
            self._reading.new_seconds += elapsed

    def answered(self) -> None:
        """The answer to a request has begun."""
        self._reading.new_count += 1

    def ended(self) -> None:
        """A request that was in flight is over."""
        self._service.new_count += 1

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
        kept = math.exp(-self._passed_seconds / SERVICE_MEMORY_SECONDS)
        self._passed_seconds = 0.0
        self._service.fade(kept)
        self._reading.fade(kept)

    def drained(self, seconds: Seconds) -> None:
        """A drain has ended."""
        self.drain_seconds += DRAIN_SHARE * (seconds - self.drain_seconds)
