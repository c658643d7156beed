"""What every model was doing when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from llmux.core.identifiers import Seconds


class Phase(StrEnum):
    """What a model is doing on the GPU, or that it is not there."""

    OFF = "off"
    WAKING = "waking"
    SERVING = "serving"
    IDLE = "idle"
    DRAINING = "draining"
    EVICTING = "evicting"


@dataclass(frozen=True, slots=True)
class Shares:
    """How the GPU's time went, in parts of the whole. Where models share it, the first of these that fits counts."""

    switching: float
    draining: float
    serving: float
    idle: float


@dataclass(slots=True)
class Timeline:
    """Per model, from when on it was in which phase; before the first entry it was off."""

    entries: dict[str, list[tuple[Seconds, Phase]]] = field(default_factory=dict)

    def spans(self, model: str, end: Seconds) -> Iterator[tuple[Seconds, Seconds, Phase]]:
        """The model's phases up to ``end``, with their beginnings and ends."""
        entries = [*self.entries[model], (end, Phase.OFF)]
        for (begins_at, phase), (ends_at, _) in pairwise(entries):
            if begins_at < min(ends_at, end):
                yield begins_at, min(ends_at, end), phase

    def shares(self, end: Seconds, models: Sequence[str] | None = None) -> Shares:
        """How the time up to ``end`` went, over all models or some."""
        chosen = self.entries if models is None else models
        changes = sorted((at, model, phase) for model in chosen for at, phase in self.entries[model])
        phases: dict[str, Phase] = {}
        seconds = dict.fromkeys(_RANKS.values(), 0.0)
        before = 0.0
        for at, model, phase in [*changes, (end, "", Phase.OFF)]:
            at = min(at, end)
            if at > before:
                seconds[_kind(phases)] += at - before
                before = at
            phases[model] = phase
        whole = end or 1.0
        return Shares(*(seconds[kind] / whole for kind in ("switching", "draining", "serving", "idle")))


_RANKS = {
    Phase.WAKING: "switching",
    Phase.EVICTING: "switching",
    Phase.DRAINING: "draining",
    Phase.SERVING: "serving",
    Phase.IDLE: "idle",
    Phase.OFF: "idle",
}


def _kind(phases: dict[str, Phase]) -> str:
    present = set(phases.values())
    return next((kind for phase, kind in _RANKS.items() if phase in present), "idle")
