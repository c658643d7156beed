"""How long switches take in virtual time: published measurements for the eviction, or the values of ``--costs``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmux.core.eviction import Eviction, Process, Weights
from llmux.errors import LlmuxError

SECONDS_MAX = 86_400.0
"""A cost above a day is a mistake."""


class CostError(LlmuxError):
    """A value of ``--costs`` cannot be used."""


@dataclass(frozen=True, slots=True)
class SwitchCost:
    """Seconds that one model takes to leave the GPU, to come back, and to start its engine."""

    evict: float
    wake: float
    cold: float

    @property
    def least_wake(self) -> float:
        """The faster way onto the GPU."""
        return min(self.wake, self.cold)


@dataclass(frozen=True, slots=True)
class MeasuredSwitches:
    """Durations in a real run, used in order, in place of the models' costs; once used up, the costs apply again."""

    evictions: Sequence[float] = ()
    wakes: Sequence[float] = ()
    """Each includes the canary, but not the recompute of frozen requests."""


def default_cost(eviction: Eviction) -> SwitchCost:
    """Published measurements of models of about 8 billion parameters; docs/simulation.md lists the sources."""
    match eviction:
        case Eviction(process=Process.STOP):
            return SwitchCost(1.0, 37.6, 37.6)
        case Eviction(process=Process.CHECKPOINT):
            return SwitchCost(7.5, 12.0, 12.0)
        case Eviction(weights=Weights.DISCARD):
            return SwitchCost(0.31, 6.53, 6.53)
        case _:
            return SwitchCost(0.34, 2.19, 2.19)


def parse_costs(texts: Sequence[str], defaults: Mapping[str, SwitchCost]) -> dict[str, SwitchCost]:
    """Costs per model from texts like ``2``, ``evict=0.5,wake=1.5,cold=30`` or ``MODEL:evict=1``; raises ``CostError``.

    A bare number is a whole switch, half of it to leave and half to come back. A cold start costs what a wake costs
    unless it is given. Texts that name a model take precedence over those for all, in any order.
    """
    costs = dict(defaults)
    parsed = [_parse(text, defaults) for text in texts]
    for model, given in sorted(parsed, key=lambda entry: entry[0] is not None):
        for name in costs if model is None else (model,):
            costs[name] = _applied(costs[name], given)
    return costs


def _applied(cost: SwitchCost, given: Mapping[str, float]) -> SwitchCost:
    changed = replace(cost, evict=given.get("evict", cost.evict), wake=given.get("wake", cost.wake))
    cold = given.get("cold", given.get("wake", cost.cold))
    return replace(changed, cold=cold)


def _parse(text: str, known: Mapping[str, SwitchCost]) -> tuple[str | None, dict[str, float]]:
    model, separator, values = text.rpartition(":")
    if separator and model not in known:
        raise CostError(f"{text!r}: the model '{model}' is not configured; there are {', '.join(known)}")
    if "=" not in values:
        half = _seconds(values, text) / 2
        return model or None, {"evict": half, "wake": half}
    given = {}
    for part in values.split(","):
        key, _, value = part.partition("=")
        if key.strip() not in ("evict", "wake", "cold"):
            raise CostError(f"{text!r}: {key.strip()!r} is none of evict, wake, cold")
        given[key.strip()] = _seconds(value, text)
    return model or None, given


def _seconds(value: str, text: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= SECONDS_MAX:
        raise CostError(f"{text!r}: {value!r} is not a number of seconds; write 2, or evict=0.5,wake=1.5")
    return seconds
