"""Metrics of what is read ahead, and of what it was good for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from llmux.observability import families

if TYPE_CHECKING:
    from prometheus_client.core import Metric

WHOLE_SHARE = 0.95
"""From here on a model's files count as being in the page cache: what small files lack does not matter."""


class Reason(StrEnum):
    """Why a model's files are read ahead."""

    QUEUED = "queued"
    """Requests wait for the model."""
    PREDICTED = "predicted"
    """It will probably be asked for next."""


class Found(StrEnum):
    """Where a wake that reads files found them."""

    HIT = "hit"
    """In the page cache, because they were read ahead."""
    PARTIAL = "partial"
    """There in part, because not all of it was read ahead in time, or has stayed."""
    WARM = "warm"
    """In the page cache by themselves."""
    MISS = "miss"
    """On the disk."""


@dataclass(slots=True)
class PrefetchCounts:
    """What reading ahead has cost and saved for one model since llmux was started."""

    read_bytes: Counter[Reason] = field(default_factory=Counter)
    """From the disk."""
    used_bytes: int = 0
    """Of these, what was in the page cache when the model was woken."""
    saved_seconds: float = 0.0
    """How long the disk took for ``used_bytes`` when they were read ahead."""
    wakes: Counter[Found] = field(default_factory=Counter)

    def wake(self, cached_bytes: int, size_bytes: int, read_bytes: int, read_seconds: float) -> None:
        """Count a wake of which ``cached_bytes`` of all its ``size_bytes`` were in the page cache.

        ``read_bytes`` were read ahead for it, in ``read_seconds``.
        """
        used_bytes = min(read_bytes, cached_bytes)
        if cached_bytes >= WHOLE_SHARE * size_bytes:
            found = Found.HIT if used_bytes else Found.WARM
        else:
            found = Found.PARTIAL if used_bytes else Found.MISS
        self.wakes[found] += 1
        self.used_bytes += used_bytes
        if used_bytes:
            self.saved_seconds += read_seconds * used_bytes / read_bytes


class PrefetchMetrics:
    """The Prometheus collector for what is read ahead, by model."""

    def __init__(self, counts: Mapping[str, PrefetchCounts]) -> None:
        self._counts = counts

    def collect(self) -> "Iterator[Metric]":
        """All metrics, as Prometheus families."""
        read = families.CounterMetricFamily(
            "llmux_prefetch_read_bytes", "Bytes read ahead from the disk.", labels=["model", "reason"]
        )
        used = families.CounterMetricFamily(
            "llmux_prefetch_used_bytes", "Bytes read ahead that wakes found in the page cache.", labels=["model"]
        )
        saved = families.CounterMetricFamily(
            "llmux_prefetch_saved_seconds",
            "Estimated time that wakes did not wait for the disk, because of what was read ahead.",
            labels=["model"],
        )
        wakes = families.CounterMetricFamily(
            "llmux_prefetch_wakes",
            "Wakes that read files, by where these were: hit, partial, warm, miss.",
            labels=["model", "found"],
        )
        for model, counts in self._counts.items():
            for reason in Reason:
                read.add_metric([model, reason], counts.read_bytes[reason])
            used.add_metric([model], counts.used_bytes)
            saved.add_metric([model], counts.saved_seconds)
            for found in Found:
                wakes.add_metric([model, found], counts.wakes[found])
        yield from (read, used, saved, wakes)
