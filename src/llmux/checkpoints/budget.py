"""Which images on this machine's disk are given up when together they exceed their budget."""

from collections.abc import Sequence
from dataclasses import dataclass

DUMP_BYTES_PER_SECOND = 500e6
DOWNLOAD_BYTES_PER_SECOND = 100e6
"""Rough rates, the first measured on a busy machine with two cores; only their ratio matters for the choice."""


@dataclass(frozen=True, slots=True)
class LocalImage:
    """A model's image on this machine's disk."""

    model: str
    size_bytes: int
    last_used_at: float
    """When it was made, fetched or restored from, in seconds since the epoch."""
    holds_engine: bool
    """The engine is in it, or about to be; or it is being uploaded."""
    is_stored: bool
    """It is in the object store, too."""

    @property
    def may_go(self) -> bool:
        """Whether nothing is lost with it but time."""
        return self.is_stored or not self.holds_engine

    @property
    def seconds_to_remake(self) -> float:
        """What it costs to have it again: a download, or a dump the next time that its engine leaves."""
        rate = DOWNLOAD_BYTES_PER_SECOND if self.holds_engine else DUMP_BYTES_PER_SECOND
        return self.size_bytes / rate


def choose(images: Sequence[LocalImage], budget_bytes: int, now: float) -> list[LocalImage]:
    """The images to give up, in order, so that the rest fit into the budget, or all that may go if that is not enough.

    First goes what costs the least time per byte and has not been used for the longest, as GreedyDual-Size weighs it.
    """
    excess = sum(image.size_bytes for image in images) - budget_bytes
    chosen = []
    for image in sorted((image for image in images if image.may_go), key=lambda image: _worth(image, now)):
        if excess <= 0:
            break
        chosen.append(image)
        excess -= image.size_bytes
    return chosen


def _worth(image: LocalImage, now: float) -> float:
    age_seconds = max(1.0, now - image.last_used_at)
    return image.seconds_to_remake / max(1, image.size_bytes) / age_seconds
