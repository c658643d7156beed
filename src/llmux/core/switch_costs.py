"""What switches have cost: a moving average per model and step, summed per direction."""

from llmux.core.identifiers import Seconds

UNKNOWN_SECONDS: Seconds = 10.0
"""Counted for a direction of which no sample exists."""

SAMPLE_MAX_SECONDS: Seconds = 60.0
NEW_SAMPLE_SHARE = 0.3


class SwitchCosts:
    """Learns how long each model takes to leave the GPU and to come back."""

    def __init__(self) -> None:
        self._evict: dict[str, Seconds] = {}
        self._wake: dict[str, Seconds] = {}

    def observe_evict(self, model: str, seconds: Seconds) -> None:
        """Learn from an eviction that succeeded."""
        _observe(self._evict, model, seconds)

    def observe_wake(self, model: str, seconds: Seconds) -> None:
        """Learn from a wake that succeeded."""
        _observe(self._wake, model, seconds)

    def direction(self, leaving: str, coming: str) -> Seconds:
        """The expected time of a switch between two models."""
        known = self.known(leaving, coming)
        return UNKNOWN_SECONDS if known is None else known

    def known(self, leaving: str, coming: str) -> Seconds | None:
        """The same, or None before both of its parts have been seen."""
        evict, wake = self._evict.get(leaving), self._wake.get(coming)
        return None if evict is None or wake is None else evict + wake


def _observe(averages: dict[str, Seconds], model: str, seconds: Seconds) -> None:
    sample = min(seconds, SAMPLE_MAX_SECONDS)
    known = averages.get(model)
    averages[model] = sample if known is None else NEW_SAMPLE_SHARE * sample + (1 - NEW_SAMPLE_SHARE) * known
