"""What a model's requests have been like lately: learnt at the beginnings and ends of its turns, never per request."""

import math

from llmux.core.identity import Seconds

MEMORY_SECONDS: Seconds = 60.0
"""Arrivals this long ago count for a third."""

ENDED_MIN = 3
"""A turn in which fewer requests ended says nothing about how long they take."""

SHORTER_SHARE, LONGER_SHARE = 0.4, 0.1
"""How much a new sample of the service time counts: what is shorter is nearer to what the engine can do."""

DRAIN_SHARE = 0.3
"""How much a new drain counts."""


class Traffic:
    """Counts arrivals, and from those derives their rate, how long requests take in the engine, and how drains last."""

    __slots__ = (
        "_counted",
        "_counted_at",
        "_turn",
        "arrived",
        "drain_seconds",
        "rate",
        "service_seconds",
        "turn_seconds",
    )

    def __init__(self) -> None:
        self.arrived = 0
        """All requests so far that were admitted or queued."""
        self.rate = 0.0
        """Arrivals a second."""
        self.service_seconds: Seconds | None = None
        """How long a request is in flight; None: not known yet."""
        self.drain_seconds: Seconds = 0.0
        self.turn_seconds: Seconds = 0.0
        """How long the last turn lasted."""
        self._counted = 0
        self._counted_at: Seconds | None = None
        self._turn: tuple[Seconds, int, int] | None = None

    def look(self, now: Seconds) -> None:
        """Bring the rate up to date."""
        if self._counted_at is None:
            self._counted_at = now
        elapsed = now - self._counted_at
        if elapsed < 1.0:
            return
        share = -math.expm1(-elapsed / MEMORY_SECONDS)
        self.rate += share * ((self.arrived - self._counted) / elapsed - self.rate)
        self._counted, self._counted_at = self.arrived, now

    def turn_began(self, in_flight: int, waiting: int, now: Seconds) -> None:
        """The model serves from now on, with so much to do."""
        self.look(now)
        self._turn = (now, self.arrived - in_flight - waiting, in_flight)

    def turn_ended(self, in_flight: int, waiting: int, now: Seconds) -> None:
        """The model admits nothing more; what is in flight has not ended yet."""
        self.look(now)
        if self._turn is None:
            return
        began_at, ended_before, in_flight_before = self._turn
        self._turn = None
        self.turn_seconds = now - began_at
        ended = self.arrived - in_flight - waiting - ended_before
        if ended < ENDED_MIN or now <= began_at:
            return
        sample = (in_flight_before + in_flight) / 2 * (now - began_at) / ended
        known = sample if self.service_seconds is None else self.service_seconds
        self.service_seconds = known + (SHORTER_SHARE if sample < known else LONGER_SHARE) * (sample - known)

    def drained(self, seconds: Seconds) -> None:
        """A drain has ended."""
        self.drain_seconds += DRAIN_SHARE * (seconds - self.drain_seconds)
