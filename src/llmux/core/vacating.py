"""Freeing GPU memory for a model: which models would have to leave, and having them leave."""

from collections.abc import Iterator
from typing import NamedTuple

from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import Footprint, GpuId
from llmux.core.lifecycle import begin_drain, begin_evict, begin_freeze, finish_drain, freezes
from llmux.core.model import Model
from llmux.core.placement import Occupant, give, take, victims
from llmux.core.states import Asleep, Serving
from llmux.core.world import World


class Plan(NamedTuple):
    """Who leaves, and whether they are stopped because asleep they would still hold too much."""

    victims: tuple[str, ...]
    stop_victims: bool = False


def plan_vacating(world: World, model: Model) -> Plan | None:
    """How memory for a model could be freed now; None while what is in its way is itself on the move."""
    free = unreserved(world, model)
    as_configured = victims(model.spec.awake, free, _occupants(world, model, stop_victims=False))
    if as_configured is not None:
        return Plan(as_configured)
    stopped = victims(model.spec.awake, free, _occupants(world, model, stop_victims=True))
    return None if stopped is None else Plan(stopped, stop_victims=True)


def unreserved(world: World, model: Model) -> dict[GpuId, int]:
    """Memory that neither another model holds nor another switch reserves, in MiB."""
    free = dict(world.free)
    give(free, model.held)
    for switch in world.switches.values():
        if not switch.is_waking and switch.target != model.name:
            take(free, world.models[switch.target].spec.awake)
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
            yield Occupant(other.name, other.held, (3 if other.frozen else 0, other.last_served_at))
    for other in world.on_gpu.values():
        if isinstance(other.state, Serving) and other is not model:
            eviction = other.eviction
            if eviction.leaves_the_gpu:
                frees = other.spec.awake if stop_victims else _freed_by(other, eviction)
                yield Occupant(other.name, frees, (1 if other.is_idle else 2, other.state.since))


def _freed_by(model: Model, eviction: Eviction) -> Footprint:
    """What a model on the GPU gives back when it leaves."""
    if not model.spec.asleep:
        return model.spec.awake
    remains = model.spec.residue(eviction)
    return {gpu: size - remains.get(gpu, 0) for gpu, size in model.spec.awake.items()}
