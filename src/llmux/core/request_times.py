"""How often a model's requests come and how long they take, estimated from what was seen of them lately."""

import math
from dataclasses import dataclass

from llmux.core.identifiers import Seconds

RATE_MEMORY_SECONDS: Seconds = 60.0
"""Time constant of the arrival rate: arrivals this long ago weigh 1/e. Half or twice as much moves the figures of
bench/policies by 4 % at most."""

BUSY_MEMORY_SECONDS: Seconds = 120.0
"""Time constant of the means, counted in busy time, so that an idle model forgets nothing. Half or twice as
much moves the figures of bench/policies by 3 % at most."""

SEEN_MIN = 2.0
"""With fewer requests than this (faded) a mean says nothing."""

PAUSE_SHARE = 0.3
"""Weight of a new pause in the moving average, as for switches."""

SAMPLE_INTERVAL_SECONDS: Seconds = 1.0
"""Samples closer together than this are skipped: decisions come faster than the means change."""


class _FadingMean:
    """Seconds, or their squares, per item over recent items: a ratio of two sums whose older part fades."""

    __slots__ = ("count", "new_count", "new_seconds", "seconds", "value")

    def __init__(self) -> None:
        self.seconds = self.count = 0.0
        """What was seen until the last sample, faded."""
        self.new_seconds = 0.0
        self.new_count = 0
        self.value: Seconds | None = None
        """The mean at the last sample; None while too little has been seen."""

    def value_after_fading(self, kept: float) -> Seconds | None:
        """What a sample that fades so would make of the mean."""
        count = kept * self.count + self.new_count
        return (kept * self.seconds + self.new_seconds) / count if count >= SEEN_MIN else None


@dataclass(frozen=True, slots=True)
class LatestTimes:
    """How long requests take, as a sample taken now would say; None where too little has been seen."""

    residence_seconds: Seconds | None
    remaining_seconds: Seconds | None
    """How much a request that is in flight at a random moment has before it, on average.

    E[T²] / 2 E[T], the mean residual life of renewal theory: half of the residence time where all take the same, all
    of it where they are exponential, and more where a few are long. Bounded against single outliers.
    """
    prefill_seconds: Seconds | None


class RequestTimes:
    """Counts arrivals, first tokens and ends, and integrates the time between them.

    ``accrue`` is called before each change of what is in flight or waiting. Where only the number in flight changes,
    as with most requests, ``joined`` and ``ended`` stand for it, by an addition each. ``sample`` turns the counts into
    estimates, about once a second.
    """

    __slots__ = (
        "_accrued_at",
        "_busy_seconds",
        "_ends",
        "_prefill",
        "_residence",
        "_residence_squares",
        "_sampled_arrivals",
        "_sampled_busy_seconds",
        "arrivals",
        "arrivals_per_second",
        "pause_seconds",
        "prefill_seconds",
        "residence_seconds",
        "sampled_at",
        "stay_seconds",
        "turned_away",
    )

    def __init__(self) -> None:
        self.arrivals = 0
        """Requests so far that were admitted or queued."""
        self.turned_away = 0
        """Requests so far that were refused because too much was asked."""
        self.arrivals_per_second = 0.0
        """Moving average."""
        self.pause_seconds: Seconds | None = None
        """For how long requests have been frozen before they resumed: moving average; None while none has been."""
        self.residence_seconds: Seconds | None = None
        """How long a request is in flight; None while unknown. Little's law: request-seconds divided by ends."""
        self.prefill_seconds: Seconds | None = None
        """Engine time per request until its first token; None while unknown.

        The time during which any request waited for its first token, divided by the first tokens: an engine may
        prefill several at once, and this is how fast it gets through them.
        """
        self.stay_seconds: Seconds = 0.0
        """How long the model served, draining included, the last time that it was on the GPU; 0 before it has left."""
        self._sampled_arrivals = 0
        self.sampled_at: Seconds | None = None
        """When the estimates were last brought up to date."""
        self._accrued_at: Seconds = 0.0
        self._busy_seconds = self._sampled_busy_seconds = 0.0
        self._ends = 0
        self._residence, self._prefill, self._residence_squares = _FadingMean(), _FadingMean(), _FadingMean()

    @property
    def asked(self) -> int:
        """Requests so far, those that were refused because too much was asked included."""
        return self.arrivals + self.turned_away

    @property
    def ends(self) -> int:
        """Requests so far that were in flight and have ended."""
        return self._ends + self._residence.new_count

    def busy_seconds_at(self, in_flight: int, now: Seconds) -> Seconds:
        """For how long, until now, any request has been in flight; so many are."""
        return self._busy_seconds + (now - self._accrued_at if in_flight else 0.0)

    def refused(self) -> None:
        """The last arrival was refused after all: what is expected to come is what will be served."""
        self.arrivals -= 1
        self.turned_away += 1

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

    def joined(self, now: Seconds) -> None:
        """A request has come to those in flight: the next ``accrue`` is to count it from now on only."""
        self._residence.new_seconds -= now - self._accrued_at

    def first_token(self) -> None:
        """A request in flight has its first token."""
        self._prefill.new_count += 1

    def ended(self, in_flight_seconds: Seconds, left_at: Seconds | None = None) -> None:
        """A request that was in flight for so long has ended.

        ``left_at``: when it left others in flight; the next ``accrue`` does not count it for the time until then. None
        where ``accrue`` has been called.
        """
        residence = self._residence
        if left_at is not None:
            residence.new_seconds += left_at - self._accrued_at
        residence.new_count += 1
        squares = self._residence_squares
        squares.new_count += 1
        squares.new_seconds += in_flight_seconds * in_flight_seconds

    def sample(self, now: Seconds) -> None:
        """Bring the estimates up to date."""
        if self.sampled_at is None:
            self.sampled_at = now
        elapsed = now - self.sampled_at
        if elapsed < SAMPLE_INTERVAL_SECONDS:
            return
        self.arrivals_per_second = self.arrivals_per_second_at(now)
        self._sampled_arrivals, self.sampled_at = self.arrivals, now
        kept = math.exp((self._sampled_busy_seconds - self._busy_seconds) / BUSY_MEMORY_SECONDS)
        self._sampled_busy_seconds = self._busy_seconds
        self._ends += self._residence.new_count
        for mean in (self._residence, self._prefill, self._residence_squares):
            mean.seconds = kept * mean.seconds + mean.new_seconds
            mean.count = kept * mean.count + mean.new_count
            mean.new_seconds = 0.0
            mean.new_count = 0
            mean.value = mean.seconds / mean.count if mean.count >= SEEN_MIN else None
        self.residence_seconds, self.prefill_seconds = self._residence.value, self._prefill.value

    def arrivals_per_second_at(self, now: Seconds) -> float:
        """What a sample taken now would make of the rate; it takes none."""
        new = self.arrivals - self._sampled_arrivals
        elapsed = 0.0 if self.sampled_at is None else now - self.sampled_at
        if elapsed < SAMPLE_INTERVAL_SECONDS:
            # An arrival's part in the limit of a short time: a model that was just asked for must not look unused.
            return self.arrivals_per_second + new / RATE_MEMORY_SECONDS
        share = -math.expm1(-elapsed / RATE_MEMORY_SECONDS)
        return self.arrivals_per_second + share * (new / elapsed - self.arrivals_per_second)

    def latest(self) -> LatestTimes:
        """What a sample taken now would make of the means; it takes none."""
        kept = math.exp((self._sampled_busy_seconds - self._busy_seconds) / BUSY_MEMORY_SECONDS)
        mean, square = self._residence.value_after_fading(kept), self._residence_squares.value_after_fading(kept)
        remaining = None
        if mean is not None and square is not None and mean > 0:
            remaining = min(1.5 * mean, max(0.5 * mean, 0.5 * square / mean))
        return LatestTimes(mean, remaining, self._prefill.value_after_fading(kept))

    def paused(self, seconds: Seconds) -> None:
        """The model is back, and what was frozen in it resumes after this time."""
        known = self.pause_seconds
        self.pause_seconds = seconds if known is None else known + PAUSE_SHARE * (seconds - known)
