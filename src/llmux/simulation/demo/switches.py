"""Which switches there were, and how long each part of them took: read from the models' histories."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmux.core.model import Transition
from llmux.core.states import Draining, Evicting, Serving, Waking


@dataclass(frozen=True, slots=True)
class Switch:
    """One model came onto the GPU. ``previous`` is empty when nothing had to leave for it."""

    previous: str
    model: str
    ended_at: float
    from_cold: bool
    drain_seconds: float
    evict_seconds: float
    wake_seconds: float

    @property
    def total_seconds(self) -> float:
        """From the moment that the previous model took no more requests to the next one's first."""
        return self.drain_seconds + self.evict_seconds + self.wake_seconds


@dataclass(frozen=True, slots=True)
class _Departure:
    model: str
    at: float
    drain_seconds: float
    evict_seconds: float


class SwitchLog:
    """Puts switches together from transitions, in the order in which they happened."""

    def __init__(self) -> None:
        self.switches: list[Switch] = []
        self._draining_since: dict[str, float] = {}
        self._departure: _Departure | None = None

    def add(self, transitions: Iterable[tuple[str, Transition]]) -> None:
        """Take in the models' next transitions, oldest first."""
        for model, transition in transitions:
            match transition.before, transition.after:
                case Serving(), Draining(since=since):
                    self._draining_since[model] = since
                case Serving(), Evicting(since=since):
                    self._draining_since[model] = since
                case Evicting(since=since, asleep=None), _:
                    drain_seconds = since - self._draining_since.pop(model, since)
                    self._departure = _Departure(model, transition.at, drain_seconds, transition.at - since)
                case Waking() as waking, Serving():
                    self._arrived(model, transition.at, waking)
                case _:
                    pass

    def _arrived(self, model: str, at: float, waking: Waking) -> None:
        left, self._departure = self._departure, None
        if left is None or left.model == model:
            left = _Departure("", at, 0.0, 0.0)
        self.switches.append(
            Switch(left.model, model, at, waking.from_cold, left.drain_seconds, left.evict_seconds, at - waking.since)
        )


class StoryReader:
    """Reads growing histories bit by bit, as long as it comes by before they have forgotten what is new."""

    def __init__(self) -> None:
        self._last: dict[str, Transition] = {}

    def read(self, histories: Mapping[str, Sequence[Transition]]) -> list[tuple[str, Transition]]:
        """The transitions since the last call, oldest first."""
        news: list[tuple[str, Transition]] = []
        for model, history in histories.items():
            fresh: list[Transition] = []
            for transition in reversed(history):
                if transition is self._last.get(model):
                    break
                fresh.append(transition)
            if history:
                self._last[model] = history[-1]
            news += [(model, transition) for transition in reversed(fresh)]
        news.sort(key=lambda entry: entry[1].at)
        return news
