"""Freeing GPU memory for a model: which models would have to leave, and having them leave."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import Footprint, GpuId
from llmux.core.lifecycle import begin_drain, begin_evict, begin_freeze, finish_drain, freezes
from llmux.core.model import Model
from llmux.core.placement import Occupant, fits, give, take, victims
from llmux.core.settings import Placement
from llmux.core.states import Asleep, Serving
from llmux.core.world import World


class Plan(NamedTuple):
    """Who leaves, and whether they are stopped because asleep they would still hold too much."""

    victims: tuple[str, ...]
    stop_victims: bool = False


class PlacementPlan(NamedTuple):
    """Where a model could come, and who leaves for it."""

    placement: Placement
    plan: Plan


def plan_vacating(world: World, model: Model) -> Plan | None:
    """How memory for a model could be freed where it is placed; None while what is in its way is on the move."""
    found = best_placement(world, model, (model.placement,))
    return None if found is None else found.plan


def best_placement(world: World, model: Model, places: Iterable[Placement]) -> PlacementPlan | None:
    """Of these places, the one for which the cheapest models have to leave; None while all of them are on the move.

    Where nothing has to leave, it is the one that leaves the least memory free: large models find room elsewhere.
    """
    free = unreserved(world, model)
    occupants = _OccupantsByGpu(world, model)
    found = [
        PlacementPlan(place, plan) for place in places if (plan := _plan_for(place.awake, free, occupants)) is not None
    ]
    if len(found) < 2:
        return found[0] if found else None

    def price(one: PlacementPlan) -> tuple[object, ...]:
        prices = sorted((_price(world.models[name]) for name in one.plan.victims), reverse=True)
        left = sum(free[gpu] - size for gpu, size in one.placement.awake.items())
        return (one.plan.stop_victims, prices, left)

    return min(found, key=price)


class _OccupantsByGpu:
    """The models that could leave for a model, listed once for all of its places."""

    def __init__(self, world: World, model: Model) -> None:
        self._world = world
        self._model = model
        self._listed: dict[bool, dict[GpuId, dict[str, Occupant]]] = {}

    def on(self, needed: Footprint, *, stop_victims: bool) -> Iterable[Occupant]:
        """Those that give back memory of a GPU that is needed."""
        by_gpu = self._listed.get(stop_victims)
        if by_gpu is None:
            by_gpu = self._listed[stop_victims] = {}
            for occupant in _occupants(self._world, self._model, stop_victims=stop_victims):
                for gpu in occupant.frees:
                    by_gpu.setdefault(gpu, {})[occupant.model] = occupant
        found: dict[str, Occupant] = {}
        for gpu in needed:
            found.update(by_gpu.get(gpu, {}))
        return found.values()


def _plan_for(needed: Footprint, free: Mapping[GpuId, int], occupants: _OccupantsByGpu) -> Plan | None:
    if fits(needed, free):
        return Plan(())
    as_configured = victims(needed, free, occupants.on(needed, stop_victims=False))
    if as_configured is not None:
        return Plan(as_configured)
    stopped = victims(needed, free, occupants.on(needed, stop_victims=True))
    return None if stopped is None else Plan(stopped, stop_victims=True)


def unreserved(world: World, model: Model) -> dict[GpuId, int]:
    """Memory that neither another model holds nor another switch reserves, in MiB."""
    free = dict(world.free)
    give(free, model.held)
    for switch in world.switches.values():
        if not switch.is_waking and switch.target != model.name:
            take(free, world.models[switch.target].awake)
    return free


def vacate(world: World, plan: Plan) -> None:
    """Have a plan's victims leave."""
    for name in plan.victims:
        model = world.models[name]
        if isinstance(model.state, Asleep):
            begin_evict(world, model, STOP)
        else:
            _leave(world, model, STOP if plan.stop_victims else model.eviction)


def _leave(world: World, model: Model, eviction: Eviction) -> None:
    if freezes(world, model, eviction):
        begin_freeze(world, model, eviction)
    else:
        begin_drain(world, model, eviction, world.clock.now + world.limits.drain_timeout_seconds)
        finish_drain(world, model)


def _occupants(world: World, model: Model, *, stop_victims: bool) -> Iterator[Occupant]:
    """The models that could leave for a model, and what each would give back."""
    for other in world.with_residue.values():
        if other is not model and other.name not in world.switches:
            yield Occupant(other.name, other.held, _price(other))
    for other in world.on_gpu.values():
        if isinstance(other.state, Serving) and other is not model:
            eviction = other.eviction
            if other.spec.frees_memory(eviction):
                frees = other.awake if stop_victims else _freed_by(other, eviction)
                yield Occupant(other.name, frees, _price(other))


def _price(model: Model) -> tuple[int, float]:
    """What it costs to have a model leave: see ``Occupant``."""
    if isinstance(model.state, Serving):
        return (1 if model.is_idle else 2, model.state.since)
    return (3 if model.frozen else 0, model.last_served_at)


def _freed_by(model: Model, eviction: Eviction) -> Footprint:
    """What a model on the GPU gives back when it leaves."""
    if not model.placement.asleep:
        return model.awake
    remains = model.placement.residue(eviction)
    return {gpu: size - remains.get(gpu, 0) for gpu, size in model.awake.items()}
