"""How much of an engine's time a model's requests need, estimated from what was seen of them lately."""

import math

from llmux.core.identifiers import Seconds

RATE_MEMORY_SECONDS: Seconds = 60.0
"""Time constant of the arrival rate: arrivals this long ago weigh 1/e. Chosen with the rest of ``adaptive`` on
bench/policies."""

BUSY_MEMORY_SECONDS: Seconds = 120.0
"""Time constant of what requests take, counted in busy time, so that an idle model forgets nothing. Chosen likewise."""

SEEN_MIN = 2.0
"""With fewer requests than this (faded) a mean says nothing."""

DRAIN_SHARE = 0.3
"""Weight of a new drain in the moving average, as for switches."""

SAMPLE_INTERVAL_SECONDS: Seconds = 1.0
"""Samples closer together than this are skipped: decisions come faster than rates change."""


class _FadingMean:
    """Seconds per item over recent items: a ratio of two sums whose older part fades."""

    __slots__ = ("_count", "_seconds", "new_count", "new_seconds")

    def __init__(self) -> None:
        self._seconds = self._count = 0.0
        self.new_seconds = 0.0
        self.new_count = 0

    def fade(self, kept: float) -> None:
        """Multiply what was seen before by ``kept``, and add what is new in full."""
        self._seconds = kept * self._seconds + self.new_seconds
        self._count = kept * self._count + self.new_count
        self.new_seconds = 0.0
        self.new_count = 0

    @property
    def value(self) -> Seconds | None:
        """The mean; None while too little has been seen."""
        return self._seconds / self._count if self._count >= SEEN_MIN else None


class LoadEstimator:
    """Counts arrivals, first tokens and ends, and integrates the time between them.

    ``accrue`` is called before each change of what is in flight or waiting: a few additions a request. ``sample`` turns
    the counts into estimates, about once a second.
    """

    __slots__ = (
        "_accrued_at",
        "_busy_seconds",
        "_prefill",
        "_residence",
        "_sampled_arrivals",
        "_sampled_at",
        "arrivals",
        "arrivals_per_second",
        "drain_seconds",
    )

    def __init__(self) -> None:
        self.arrivals = 0
        """Requests so far that were admitted or queued."""
        self.arrivals_per_second = 0.0
        """Moving average."""
        self.drain_seconds: Seconds = 0.0
        """Moving average of what drains have taken."""
        self._sampled_arrivals = 0
        self._sampled_at: Seconds | None = None
        self._accrued_at: Seconds = 0.0
        self._busy_seconds: Seconds = 0.0
        self._residence, self._prefill = _FadingMean(), _FadingMean()

    @property
    def residence_seconds(self) -> Seconds | None:
        """How long a request is in flight; None while unknown. Little's law: request-seconds divided by ends."""
        return self._residence.value

    @property
    def prefill_seconds(self) -> Seconds | None:
        """Engine time per request until its first token; None while unknown.

        The time during which any request waited for its first token, divided by the first tokens: an engine may
        prefill several at once, and this is how fast it gets through them.
        """
        return self._prefill.value

    @property
    def load(self) -> float:
        """The share of the engine's time that arrivals need until their first tokens; 1 while unknown."""
        if self._prefill.value is not None:
            return self.arrivals_per_second * self._prefill.value
        if self._residence.value is not None:
            # Without streaming prefill cannot be seen. Residence time bounds it, and the whole time bounds that.
            return min(1.0, self.arrivals_per_second * self._residence.value)
        return 1.0

    def resume(self, now: Seconds) -> None:
        """The model begins to serve; the time before does not count."""
        self._accrued_at = now
        self.sample(now)

    def accrue(self, in_flight: int, awaits_first_token: bool, now: Seconds) -> None:
        """Account for the time since the last call: what was in flight, and whether any waited for a first token."""
        elapsed = now - self._accrued_at
        self._accrued_at = now
        if in_flight:
            self._busy_seconds += elapsed
        self._residence.new_seconds += in_flight * elapsed
        if awaits_first_token:
            self._prefill.new_seconds += elapsed

    def first_token(self) -> None:
        """A request in flight has its first token."""
        self._prefill.new_count += 1

    def ended(self) -> None:
        """A request that was in flight has ended."""
        self._residence.new_count += 1

    def sample(self, now: Seconds) -> None:
        """Bring the estimates up to date."""
        if self._sampled_at is None:
            self._sampled_at = now
        elapsed = now - self._sampled_at
        if elapsed < SAMPLE_INTERVAL_SECONDS:
            return
        share = -math.expm1(-elapsed / RATE_MEMORY_SECONDS)
        recent_rate = (self.arrivals - self._sampled_arrivals) / elapsed
        self.arrivals_per_second += share * (recent_rate - self.arrivals_per_second)
        self._sampled_arrivals, self._sampled_at = self.arrivals, now
        kept = math.exp(-self._busy_seconds / BUSY_MEMORY_SECONDS)
        self._busy_seconds = 0.0
        self._residence.fade(kept)
        self._prefill.fade(kept)

    def drained(self, seconds: Seconds) -> None:
        """A drain has ended."""
        self.drain_seconds += DRAIN_SHARE * (seconds - self.drain_seconds)
