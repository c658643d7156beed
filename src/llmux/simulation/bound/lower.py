"""The lower bound of a trace: what every policy's time to first token is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmux.core.identifiers import ALL_OF_IT, Footprint, Seconds
from llmux.core.placement import fits, free_memory
from llmux.core.settings import ModelSpec
from llmux.simulation.bound.alone import Earliest, alone
from llmux.simulation.bound.turns import Side, least_waiting
from llmux.simulation.report.figures import Distribution, LowerBound, within_of
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.workload.call import TracedCall

SIDES_MAX = 4
"""For so many of the busiest models it is looked at what their taking turns with all others costs at least."""


def lower_bound(
    calls: Sequence[TracedCall],
    specs: Sequence[ModelSpec],
    costs: Mapping[str, SwitchCost],
    speed: EngineSpeed,
    turn_seconds_min: Seconds,
    capacity: Footprint = ALL_OF_IT,
) -> LowerBound:
    """Times to first token, each number of which no policy can be below while every request is served.

    The percentiles are those of models that never have to leave; the mean adds what taking turns costs at least.
    """
    by_name = {spec.name: spec for spec in specs}
    own: dict[str, list[TracedCall]] = {}
    for call in calls:
        own.setdefault(call.model, []).append(call)
    earliest = {
        name: alone(some, speed, by_name[name].max_in_flight, costs[name].least_wake) for name, some in own.items()
    }
    durations = sorted(entry.first_token_at - entry.arrived_at for entries in earliest.values() for entry in entries)
    firsts = Distribution.of(durations)
    if firsts.mean is not None:
        turns = _turns_seconds(earliest, by_name, costs, turn_seconds_min, capacity)
        firsts = replace(firsts, mean=firsts.mean + turns / len(calls))
    return LowerBound(firsts, within_of(durations, len(calls)), durations)


def _turns_seconds(
    earliest: Mapping[str, Sequence[Earliest]],
    specs: Mapping[str, ModelSpec],
    costs: Mapping[str, SwitchCost],
    turn_seconds_min: Seconds,
    capacity: Footprint,
) -> Seconds:
    """The most that can be said of any of the busiest models against all others."""
    busiest = sorted(earliest, key=lambda name: len(earliest[name]), reverse=True)[:SIDES_MAX]
    most = 0.0
    for name in busiest if len(earliest) > 2 else busiest[:1]:
        others = [other for other in earliest if other != name]
        if not others or not all(_exclude(specs[name], specs[other], capacity) for other in others):
            continue
        one = _side([name], others, earliest, costs, turn_seconds_min)
        rest = _side(others, [name], earliest, costs, turn_seconds_min)
        most = max(most, least_waiting(one, rest))
    return most


def _exclude(one: ModelSpec, other: ModelSpec, capacity: Footprint) -> bool:
    """Whether the two are never on the GPUs together."""
    return not fits(other.awake, free_memory(capacity, [one.awake]))


def _side(
    names: Sequence[str],
    others: Sequence[str],
    earliest: Mapping[str, Sequence[Earliest]],
    costs: Mapping[str, SwitchCost],
    turn_seconds_min: Seconds,
) -> Side:
    """Some models together, as if switching among them took no time."""
    leaving = min(costs[other].evict for other in others)
    coming = min(costs[name].least_wake for name in names)
    ready_at = [entry.reading_at for name in names for entry in earliest[name]]
    # Only of one model it is known in which order its requests are read.
    reading = [entry.prefill_seconds for entry in earliest[names[0]]] if len(names) == 1 else ()
    return Side(ready_at, leaving + coming, turn_seconds_min, reading)
