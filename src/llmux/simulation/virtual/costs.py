"""How long switches take in virtual time: published measurements for the eviction, or the values of ``--costs``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmux.core.eviction import Eviction, Process, Weights
from llmux.errors import LlmuxError
from llmux.runtime.prefetch_choice import reads_files

SECONDS_MAX = 86_400.0
"""A cost above a day is a mistake."""


class CostError(LlmuxError):
    """A value of ``--costs`` cannot be used."""


@dataclass(frozen=True, slots=True)
class SwitchCost:
    """Seconds that one model takes to leave the GPU, to come back, and to start its engine; its memory meanwhile."""

    evict: float
    wake: float
    cold: float
    wake_after: Mapping[Eviction, float] = field(default_factory=dict, hash=False)
    """To come back after evictions deeper than its own."""
    host_mib: Mapping[Eviction, int] = field(default_factory=dict, hash=False)
    """Host memory that it holds asleep, as far as it is known."""
    read: float = 0.0
    """For how long a start, or a wake that reads files, waits for the disk if none of them has been read ahead; 0 where
    reading ahead is not simulated."""
    recompute_share: float = 1.0
    """What requests that were frozen when it left compute again: a share of what they had."""

    def coming(self, asleep: Eviction | None) -> float:
        """What it takes to come onto the GPU if it left so; None: from a cold start."""
        return self.cold if asleep is None else self.wake_after.get(asleep, self.wake)

    def reading(self, asleep: Eviction | None) -> float:
        """For how long its coming waits for the disk if it left so; None: from a cold start."""
        return min(self.read, self.coming(asleep)) if asleep is None or reads_files(asleep) else 0.0

    def read_ahead(self, eviction: Eviction) -> "SwitchCost":
        """What it takes at the least if the model leaves so: with all of its files in the page cache."""
        return replace(
            self,
            wake=self.wake - self.reading(eviction),
            cold=self.cold - self.reading(None),
            wake_after={one: seconds - self.reading(one) for one, seconds in self.wake_after.items()},
        )

    @property
    def least_wake(self) -> float:
        """The fastest way onto the GPU."""
        return min(self.wake, self.cold, *self.wake_after.values())


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


def parse_costs(
    texts: Sequence[str],
    defaults: Mapping[str, SwitchCost],
    evictions: Mapping[str, Eviction] | None = None,
    deeper: Mapping[str, Sequence[Eviction]] | None = None,
) -> dict[str, SwitchCost]:
    """Costs per model from texts like ``2``, ``evict=0.5,wake=1.5,cold=30`` or ``MODEL:read=12``; raises ``CostError``.

    A bare number is a whole switch, half of it to leave and half to come back. A cold start costs what a wake costs
    unless it is given. In place of a model stands an eviction for all that leave by it (``evictions``, by model). Those
    for a model take precedence over those for an eviction, and these over those for all, in any order. ``deeper`` are
    further evictions of a model; what is given for the model itself is not about them.
    """
    parsed = sorted((_parse(text, defaults) for text in texts), key=lambda entry: _SPECIFICITY[type(entry[0])])

    def applied(cost: SwitchCost, *subjects: str | Eviction | None) -> SwitchCost:
        for whose, given in parsed:
            if whose is None or whose in subjects:
                cost = _applied(cost, given)
        return cost

    return {
        name: replace(
            applied(cost, name, (evictions or {}).get(name)),
            wake_after={one: applied(default_cost(one), one).wake for one in (deeper or {}).get(name, ())},
        )
        for name, cost in defaults.items()
    }


_SPECIFICITY: dict[type, int] = {type(None): 0, Eviction: 1, str: 2}


def _applied(cost: SwitchCost, given: Mapping[str, float]) -> SwitchCost:
    changed = replace(cost, evict=given.get("evict", cost.evict), wake=given.get("wake", cost.wake))
    cold = given.get("cold", given.get("wake", cost.cold))
    return replace(changed, cold=cold, read=given.get("read", cost.read))


def _parse(text: str, known: Mapping[str, SwitchCost]) -> tuple[str | Eviction | None, dict[str, float]]:
    """For whom the costs are, a model, an eviction or all, and the costs."""
    prefix, separator, values = text.rpartition(":")
    whose: str | Eviction | None = prefix if separator else None
    if separator and prefix not in known:
        try:
            whose = Eviction.parse(prefix)
        except ValueError:
            there_are = f"there are {', '.join(known)}"
            raise CostError(f"{text!r}: the model '{prefix}' is not configured; {there_are}") from None
    if "=" not in values:
        half = _seconds(values, text) / 2
        return whose, {"evict": half, "wake": half}
    given = {}
    for part in values.split(","):
        key, _, value = part.partition("=")
        if key.strip() not in ("evict", "wake", "cold", "read"):
            raise CostError(f"{text!r}: {key.strip()!r} is none of evict, wake, cold, read")
        given[key.strip()] = _seconds(value, text)
    return whose, given


def _seconds(value: str, text: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= SECONDS_MAX:
        raise CostError(f"{text!r}: {value!r} is not a number of seconds; write 2, or evict=0.5,wake=1.5")
    return seconds
