"""A histogram of plain integers: cheap to count into, rendered only when somebody asks."""

from bisect import bisect_left
from collections.abc import Sequence

SECONDS_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""From a request that did not wait to the cold start of a very large model."""


class Histogram:
    """Counts values into buckets with fixed upper bounds."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS_BOUNDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values have been counted."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        cumulative, result = 0, []
        for bound, count in zip((*map(_text, self._bounds), "+Inf"), self._counts, strict=True):
            cumulative += count
            result.append((bound, float(cumulative)))
        return result


def _text(bound: float) -> str:
    return repr(float(bound))
