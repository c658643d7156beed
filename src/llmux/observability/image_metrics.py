"""Metrics of the images that are copied to an object store and back."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from llmux.observability import families

if TYPE_CHECKING:
    from prometheus_client.core import Metric


class TransferCosts(Protocol):
    """What one model's transfers in one direction have cost since llmux was started."""

    @property
    def finished(self) -> int:
        """The number of those that succeeded."""

    @property
    def failures(self) -> int:
        """The number of those that failed."""

    @property
    def bytes(self) -> int:
        """What they have copied, before compression."""

    @property
    def seconds(self) -> float:
        """How long they took, failed ones included."""


class Transfers(Protocol):
    """One model's transfers."""

    @property
    def uploads(self) -> TransferCosts:
        """To the object store."""

    @property
    def downloads(self) -> TransferCosts:
        """From the object store."""

    @property
    def is_busy(self) -> bool:
        """Whether one is under way, or waits for its turn."""


class ImageMetrics:
    """The Prometheus collector for transfers of images, by model and direction."""

    def __init__(self, transfers: Callable[[], Mapping[str, Transfers]]) -> None:
        self._transfers = transfers

    def collect(self) -> "Iterator[Metric]":
        """All metrics, as Prometheus families."""
        labels = ["model", "direction"]
        finished = families.CounterMetricFamily(
            "llmux_image_transfers", "Images copied to or from the store.", labels=labels
        )
        failures = families.CounterMetricFamily(
            "llmux_image_transfer_failures",
            "Attempts to copy an image to or from the store that failed.",
            labels=labels,
        )
        copied = families.CounterMetricFamily(
            "llmux_image_transfer_bytes", "Bytes of images that were copied, before compression.", labels=labels
        )
        seconds = families.CounterMetricFamily(
            "llmux_image_transfer_seconds", "Time spent on copying images, failed attempts included.", labels=labels
        )
        busy = families.GaugeMetricFamily(
            "llmux_image_transfer_pending", "1 while an image is being copied or waits for that.", labels=["model"]
        )
        for model, transfers in self._transfers().items():
            for direction, costs in (("upload", transfers.uploads), ("download", transfers.downloads)):
                finished.add_metric([model, direction], costs.finished)
                failures.add_metric([model, direction], costs.failures)
                copied.add_metric([model, direction], costs.bytes)
                seconds.add_metric([model, direction], costs.seconds)
            busy.add_metric([model], 1 if transfers.is_busy else 0)
        yield from (finished, failures, copied, seconds, busy)
