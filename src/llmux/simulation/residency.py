"""Which model was on the GPU when: phases over time, shares of time, and switches, read from the models' histories."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import assert_never

from llmux.core.identifiers import Seconds
from llmux.core.model import Transition
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking


class Phase(StrEnum):
    """What a model is doing, as far as the GPU is concerned."""

    NOT_STARTED = "not started"
    ASLEEP = "asleep"
    FAILED = "failed"
    STARTING = "starting"
    WAKING = "waking"
    SERVING = "serving"
    IDLE = "idle"
    DRAINING = "draining"
    LEAVING = "leaving"


OFF_GPU = frozenset({Phase.NOT_STARTED, Phase.ASLEEP, Phase.FAILED})


def phase_of(state: State, *, is_busy: bool) -> Phase:
    """The phase of a model in this state; ``is_busy``: with requests in its engine."""
    match state:
        case Serving():
            return Phase.SERVING if is_busy else Phase.IDLE
        case Waking(asleep=None):
            return Phase.STARTING
        case Waking():
            return Phase.WAKING
        case Draining():
            return Phase.DRAINING
        case Evicting(asleep=None):
            return Phase.LEAVING
        case Evicting():
            return Phase.ASLEEP  # It goes deeper asleep, or is stopped: it has left the GPU already.
        case Asleep():
            return Phase.ASLEEP
        case Cold():
            return Phase.NOT_STARTED
        case Failed() | Stuck():
            return Phase.FAILED
        case _:
            assert_never(state)


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts of a time span, which add up to 1. Of models that share the GPU, the first of these that applies counts."""

    switching: float
    draining: float
    serving: float
    idle: float


@dataclass(slots=True)
class Timeline:
    """Per model, the phases that it entered and when, in order; before the first one it was off the GPU."""

    entries: dict[str, list[tuple[Seconds, Phase]]] = field(default_factory=dict)

    def enter(self, model: str, phase: Phase, at: Seconds) -> None:
        """Record the model's phase from now on."""
        entries = self.entries.setdefault(model, [])
        if not entries or entries[-1][1] is not phase:
            entries.append((at, phase))

    def spans(self, model: str, end: Seconds, start: Seconds = 0.0) -> Iterator[tuple[Seconds, Seconds, Phase]]:
        """The model's phases that overlap ``start`` to ``end``: begin, end and phase, cut off at ``end``."""
        entries = self.entries.get(model, [])
        first = max(0, bisect_right(entries, start, key=lambda entry: entry[0]) - 1)
        for (begins_at, phase), (ends_at, _) in pairwise([*entries[first:], (end, Phase.NOT_STARTED)]):
            if begins_at < min(ends_at, end):
                yield begins_at, min(ends_at, end), phase

    def strip(self, model: str, start: Seconds, end: Seconds, cells: int) -> list[Phase]:
        """The phase with the longest part in each of ``cells`` equal parts of the time."""
        width = (end - start) / cells
        parts: list[dict[Phase, float]] = [{} for _ in range(cells)]
        for begins_at, ends_at, phase in self.spans(model, end, start):
            cell = max(0, int((begins_at - start) / width))
            while cell < cells and start + cell * width < ends_at:
                seconds = min(ends_at, start + (cell + 1) * width) - max(begins_at, start + cell * width)
                parts[cell][phase] = parts[cell].get(phase, 0.0) + seconds
                cell += 1
        for part in parts:
            part[Phase.NOT_STARTED] = part.get(Phase.NOT_STARTED, 0.0) + width - sum(part.values())
        return [max(part, key=part.__getitem__) for part in parts]

    def shares(self, end: Seconds, models: Sequence[str] | None = None) -> Shares:
        """How the time up to ``end`` was spent, over all models or some; all 0 if there was no time."""
        chosen = self.entries if models is None else models
        changes = [(at, model, phase) for model in chosen for at, phase in self.entries.get(model, ())]
        # By time only: entries of one model at the same time must keep their order.
        changes.sort(key=lambda change: change[0])
        phases: dict[str, Phase] = {}
        seconds = dict.fromkeys(_KINDS.values(), 0.0)
        before = 0.0
        for at, model, phase in [*changes, (end, "", Phase.NOT_STARTED)]:
            at = min(at, end)
            if at > before:
                present = phases.values()
                kind = next((kind for phase, kind in _KINDS.items() if phase in present), "idle")
                seconds[kind] += at - before
                before = at
            phases[model] = phase
        whole = end or 1.0
        return Shares(*(seconds[kind] / whole for kind in ("switching", "draining", "serving", "idle")))


_KINDS = {
    **dict.fromkeys((Phase.STARTING, Phase.WAKING, Phase.LEAVING), "switching"),
    Phase.DRAINING: "draining",
    Phase.SERVING: "serving",
    Phase.IDLE: "idle",
}
"""The field of ``Shares`` that a phase counts in, by precedence."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One model came onto the GPU. ``previous`` is empty if none had to leave for it."""

    previous: str
    model: str
    ended_at: float
    from_cold: bool
    drain_seconds: float
    evict_seconds: float
    wake_seconds: float

    @property
    def total_seconds(self) -> float:
        """From the last admission to the previous model to the first one to the next."""
        return self.drain_seconds + self.evict_seconds + self.wake_seconds


@dataclass(frozen=True, slots=True)
class _Departure:
    model: str
    drain_seconds: float
    evict_seconds: float


class SwitchLog:
    """Assembles switches from growing histories, which must be read before they drop what is new in them.

    On several GPUs a model comes in the place of those that left the same GPUs before it; of several, the last counts.
    """

    def __init__(self) -> None:
        self.switches: list[Switch] = []
        self._gpus: dict[str, Sequence[str]] = {}
        """By model: the GPUs on which it was last."""
        self._read: dict[str, Transition] = {}
        """By model: the last transition that has been read."""
        self._draining_since: dict[str, float] = {}
        self._departures: dict[str, _Departure] = {}
        """By GPU: the latest, until another model has come."""

    def read(
        self, histories: Mapping[str, Sequence[Transition]], gpus: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Take in what is new in the models' histories. ``gpus``: where models are; without it, all are on one GPU."""
        self._gpus |= {model: names for model, names in (gpus or {}).items() if names}
        added: list[tuple[str, Transition]] = []
        for model, history in histories.items():
            first = len(history)
            while first and history[first - 1] is not self._read.get(model):
                first -= 1
            added += [(model, transition) for transition in history[first:]]
            if history:
                self._read[model] = history[-1]
        self.add(sorted(added, key=lambda entry: entry[1].at))

    def add(self, transitions: Iterable[tuple[str, Transition]]) -> None:
        """Take in transitions of the models, oldest first."""
        for model, transition in transitions:
            match transition.before, transition.after:
                case Serving(), Draining(since=since) | Evicting(since=since):
                    self._draining_since[model] = since
                case Evicting(since=since, asleep=None), _:
                    drain_seconds = since - self._draining_since.pop(model, since)
                    departure = _Departure(model, drain_seconds, transition.at - since)
                    self._departures |= dict.fromkeys(self._gpus_of(model), departure)
                case Waking() as waking, Serving():
                    self._arrived(model, transition.at, waking)
                case _:
                    pass

    def _arrived(self, model: str, at: float, waking: Waking) -> None:
        found = [departure for gpu in self._gpus_of(model) if (departure := self._departures.pop(gpu, None))]
        left = next((departure for departure in reversed(found) if departure.model != model), _Departure("", 0.0, 0.0))
        self.switches.append(
            Switch(left.model, model, at, waking.from_cold, left.drain_seconds, left.evict_seconds, at - waking.since)
        )

    def _gpus_of(self, model: str) -> Sequence[str]:
        return self._gpus.get(model, ("",))
