"""A histogram of plain integers, rendered at scrape: prometheus-client's own is too slow for the request path."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

SECONDS_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Upper bounds, from a request that did not wait to the cold start of a very large model."""

# Bound once, for speed: see the docstring of llmux.gateway.
_position_of: Final = bisect_left


class Histogram:
    """Counts values in buckets with fixed upper bounds; a value equal to a bound belongs to its bucket."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS_BOUNDS) -> None:
        self._bounds = tuple(map(float, bounds))
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[_position_of(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """The number of values counted."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, the form in which Prometheus exposes them."""
        cumulative, result = 0, []
        for bound, count in zip((*map(repr, self._bounds), "+Inf"), self._counts, strict=True):
            cumulative += count
            result.append((bound, float(cumulative)))
        return result
