"""Which model will be asked for next: what followed what, and at which time of day, with the past fading.

Fed with demands: a demand is that a model is wanted while it is not on the GPU, the moment at which its files would be
of use. Deterministic, and of bounded size: at most ``FOLLOWERS_MAX`` numbers and 24 for each model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmux.core.identifiers import Seconds

FOLLOWERS_MAX = 16
"""Models remembered as followers of one model; the one that counts least makes room."""
KEPT_PER_DEMAND = 0.9
"""How much of what followed a model still counts when something has followed it once more: a habit of ten demands."""
KEPT_PER_DAY = 0.8
"""How much of the times of day still counts a day later: a habit of a working week."""
HOURS = 24
HOUR: Seconds = 3600.0
DAY: Seconds = HOURS * HOUR
NEIGHBOUR_WEIGHT = 0.5
"""What the hours before and after count beside the hour itself: habits are not that punctual."""
PRIOR_DEMANDS = 2.0
"""The weight of the time of day, in demands: where fewer have followed the present model, it says more than they do."""


@dataclass(frozen=True, slots=True)
class Demand:
    """At this time (Unix), a model was wanted that was not on the GPU."""

    model: str
    at: Seconds


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model, and how likely it is that the next demand is for it; shares add up to 1 at most."""

    model: str
    share: float


class DemandPredictor:
    """Learns from demands, in the order of their times; demands for models that it does not know are passed over."""

    def __init__(self, models: Iterable[str]) -> None:
        self._hours: dict[str, list[float]] = {model: [0.0] * HOURS for model in models}
        self._faded_at: Seconds | None = None
        """Up to when ``_hours`` have faded."""
        self._followers: dict[str, dict[str, float]] = {}
        self._last: str | None = None

    def observe(self, demand: Demand) -> None:
        """Learn from a demand. One more for the same model is none: the model was there, or nothing came between."""
        if demand.model not in self._hours or demand.model == self._last:
            return
        self._fade_hours(demand.at)
        self._hours[demand.model][_hour_of(demand.at)] += 1.0
        if self._last is not None:
            self._count_follower(self._followers.setdefault(self._last, {}), demand.model)
        self._last = demand.model

    def ranked(self, at: Seconds) -> Sequence[Prediction]:
        """What may come next, the likeliest first; a model that was never seen is not among it.

        What followed the present model, smoothed by the time of day: where n demands followed it, their shares weigh
        n / (n + ``PRIOR_DEMANDS``).
        """
        followers = self._followers.get(self._last, {}) if self._last is not None else {}
        demands = sum(followers.values())
        by_hour = {model: self._weight_now(model, at) for model in self._hours if model != self._last}
        whole_hour = sum(by_hour.values())
        ranked = []
        for model, weight in by_hour.items():
            habit = PRIOR_DEMANDS * weight / whole_hour if whole_hour else 0.0
            share = (followers.get(model, 0.0) + habit) / (demands + PRIOR_DEMANDS)
            if share > 0.0:
                ranked.append(Prediction(model, share))
        return sorted(ranked, key=lambda prediction: (-prediction.share, prediction.model))

    def _fade_hours(self, at: Seconds) -> None:
        if self._faded_at is None:
            self._faded_at = at
        days = int((at - self._faded_at) // DAY)
        if days <= 0:
            return
        self._faded_at += days * DAY
        kept = KEPT_PER_DAY**days
        for hours in self._hours.values():
            hours[:] = [kept * count for count in hours]

    def _weight_now(self, model: str, at: Seconds) -> float:
        hours, hour = self._hours[model], _hour_of(at)
        return hours[hour] + NEIGHBOUR_WEIGHT * (hours[hour - 1] + hours[(hour + 1) % HOURS])

    def _count_follower(self, followers: dict[str, float], model: str) -> None:
        for name in followers:
            followers[name] *= KEPT_PER_DEMAND
        followers[model] = followers.get(model, 0.0) + 1.0
        if len(followers) > FOLLOWERS_MAX:
            del followers[min(followers, key=lambda name: (followers[name], name))]


def _hour_of(at: Seconds) -> int:
    return int(at % DAY // HOUR)
