"""What switches cost: a moving average per model and step.

The cost of a direction is the sum of its two parts, so that N models need N samples rather than N².
"""

from typing import TypeVar

from llmux.core.eviction import Eviction
from llmux.core.identifiers import Seconds

K = TypeVar("K")

UNKNOWN_SECONDS: Seconds = 10.0
"""Assumed for a direction without samples. As in 0.7.7: between a wake from host memory and a cold start. adaptive
assumes as much of answers that it has seen too few of."""

SAMPLE_MAX_SECONDS: Seconds = 60.0
"""Longer samples count as this: one cold start must not make a model look expensive for hours. As in 0.7.7."""

NEW_SAMPLE_SHARE = 0.3
"""Weight of a new sample. As in 0.7.7: about the last five switches count."""


class SwitchCosts:
    """Learns how long each model takes to leave the GPU and to come back."""

    def __init__(self) -> None:
        self._evict: dict[str, Seconds] = {}
        self._wake: dict[str, Seconds] = {}
        self._return: dict[tuple[str, Eviction], Seconds] = {}
        self._moved: dict[str, Seconds] = {}

    def observe_evict(self, model: str, seconds: Seconds) -> None:
        """Add the time of an eviction that succeeded."""
        _observe(self._evict, model, seconds)
        self._moved[model] = self.moved_seconds(model) + seconds

    def observe_wake(self, model: str, seconds: Seconds) -> None:
        """Add the time of a wake that succeeded."""
        _observe(self._wake, model, seconds)

    def wake_seconds(self, model: str) -> Seconds | None:
        """The expected time that a model takes to come back; None while unknown."""
        return self._wake.get(model)

    def evict_seconds(self, model: str) -> Seconds | None:
        """The expected time that a model takes to leave; None while unknown."""
        return self._evict.get(model)

    def observe_return(self, model: str, left_by: Eviction, seconds: Seconds) -> None:
        """Add the time of a wake that succeeded, by how the model had left; after ``STOP`` it is a cold start."""
        _observe(self._return, (model, left_by), seconds)
        self._moved[model] = self.moved_seconds(model) + seconds

    def moved_seconds(self, model: str) -> Seconds:
        """How long the model has taken so far, in all, to leave and to come back."""
        return self._moved.get(model, 0.0)

    def to_return(self, model: str, left_by: Eviction) -> Seconds | None:
        """How long the model is expected to take to come back if it left so; None until that has been seen."""
        return self._return.get((model, left_by))

    def forget(self, model: str) -> None:
        """Drop what is known of a model that is no more."""
        self._evict.pop(model, None)
        self._wake.pop(model, None)
        self._moved.pop(model, None)
        for key in [key for key in self._return if key[0] == model]:
            del self._return[key]

    def direction(self, leaving: str, coming: str) -> Seconds:
        """The expected time of a switch from one model to another."""
        known = self.known(leaving, coming)
        return UNKNOWN_SECONDS if known is None else known

    def known(self, leaving: str, coming: str) -> Seconds | None:
        """The same, or None until both parts have been seen."""
        if leaving in self._evict and coming in self._wake:
            return self._evict[leaving] + self._wake[coming]
        return None


def _observe(averages: dict[K, Seconds], key: K, seconds: Seconds) -> None:
    sample = min(seconds, SAMPLE_MAX_SECONDS)
    known = averages.get(key)
    averages[key] = sample if known is None else NEW_SAMPLE_SHARE * sample + (1 - NEW_SAMPLE_SHARE) * known
