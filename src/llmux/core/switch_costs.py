"""What switches cost: a moving average per model and step.

The cost of a direction is the sum of its two parts, so that N models need N samples rather than N².
"""

from llmux.core.identifiers import Seconds

UNKNOWN_SECONDS: Seconds = 10.0
"""Assumed for a direction without samples. As in 0.7.7: between a wake from host memory and a cold start."""

SAMPLE_MAX_SECONDS: Seconds = 60.0
"""Longer samples count as this: one cold start must not make a model look expensive for hours. As in 0.7.7."""

NEW_SAMPLE_SHARE = 0.3
"""Weight of a new sample. As in 0.7.7: about the last five switches count."""


class SwitchCosts:
    """Learns how long each model takes to leave the GPU and to come back."""

    def __init__(self) -> None:
        self._evict: dict[str, Seconds] = {}
        self._wake: dict[str, Seconds] = {}

    def observe_evict(self, model: str, seconds: Seconds) -> None:
        """Add the time of an eviction that succeeded."""
        _observe(self._evict, model, seconds)

    def observe_wake(self, model: str, seconds: Seconds) -> None:
        """Add the time of a wake that succeeded."""
        _observe(self._wake, model, seconds)

    def direction(self, leaving: str, coming: str) -> Seconds:
        """The expected time of a switch from one model to another."""
        known = self.known(leaving, coming)
        return UNKNOWN_SECONDS if known is None else known

    def known(self, leaving: str, coming: str) -> Seconds | None:
        """The same, or None until both parts have been seen."""
        evict, wake = self._evict.get(leaving), self._wake.get(coming)
        return None if evict is None or wake is None else evict + wake


def _observe(averages: dict[str, Seconds], model: str, seconds: Seconds) -> None:
    sample = min(seconds, SAMPLE_MAX_SECONDS)
    known = averages.get(model)
    averages[model] = sample if known is None else NEW_SAMPLE_SHARE * sample + (1 - NEW_SAMPLE_SHARE) * known
