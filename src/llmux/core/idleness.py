"""What becomes of the GPUs when nobody asks for what is on them: models leave, and others come back."""

import math
from typing import NamedTuple

from llmux.core import companions
from llmux.core.host_memory import has_room_for
from llmux.core.identifiers import Seconds
from llmux.core.lifecycle import begin_drain, begin_evict
from llmux.core.model import Model
from llmux.core.states import Manual, Serving
from llmux.core.switching import bring_beside
from llmux.core.vacating import PlacementPlan, Room, vacate
from llmux.core.world import World


class _Return(NamedTuple):
    """How the default model comes back, and when; infinity where it does not before something happens."""

    at: Seconds
    found: PlacementPlan


def settle(world: World) -> Seconds:
    """Do what is due; returns when something will be if nothing happens before."""
    next_at = math.inf
    for model in list(world.on_gpu.values()):
        if model.in_flight or type(model.state) is not Serving:
            continue  # Of many models on the GPUs most are in use, and this runs after every event.
        leaves_at = _own_time(world, model)
        if leaves_at <= world.clock.now:
            leave(world, model)
        else:
            next_at = min(next_at, leaves_at)
    if world.default_model is not None:
        next_at = min(next_at, _bring_default(world))
    companions.bring(world)
    return next_at


def leave(world: World, model: Model) -> None:
    """Have an idle model leave as configured, as soon as there is room for it in host memory."""
    if has_room_for(world, model, model.eviction):
        begin_evict(world, model, model.eviction)
    else:
        begin_drain(world, model, model.eviction, world.clock.now + world.limits.drain_timeout_seconds)


def leaves_at(world: World, model: Model) -> Seconds:
    """When a model leaves the GPU if no request comes; infinity where it stays, or is not idle."""
    if not model.is_idle:
        return math.inf
    coming = _return(world)
    in_the_way = coming is not None and model.name in coming.found.plan.victims
    return min(_own_time(world, model), coming.at if coming is not None and in_the_way else math.inf)


def _own_time(world: World, model: Model) -> Seconds:
    """When it has been idle for as long as it stays.

    A model that the mode holds on the GPU stays: it alone is served, and would have to come back. So does the default
    model. Of a model that a client has no more use for, even the minimum time is over: it is there so that a switch
    is not in vain.
    """
    if not model.is_idle or not model.frees_memory:
        return math.inf
    if model is world.default_model or is_held(world, model):
        return math.inf
    if model.idle_seconds == 0.0:
        return model.idle_since
    assert isinstance(model.state, Serving)
    unused_since = companions.unused_since(world, model)
    return max(unused_since + model.idle_seconds, model.state.since + world.limits.min_active_seconds)


def _bring_default(world: World) -> Seconds:
    """Have leave what is in the default model's way, and wake that one when nothing is."""
    coming = _return(world)
    if coming is None or coming.at > world.clock.now:
        return math.inf if coming is None else coming.at
    assert world.default_model is not None
    world.place(world.default_model, coming.found.placement)
    vacate(world, coming.found.plan)
    if not coming.found.plan.victims:
        bring_beside(world, world.default_model)
    return math.inf


def _return(world: World) -> _Return | None:
    """None where the default model is back, may not come, or would be in the way of what somebody waits for."""
    default = world.default_model
    if default is None or not default.can_be_woken or default.stays_away or not world.allows(default.name):
        return None
    if world.candidates or world.commands or world.switches or world.missing:
        return None
    room = Room(world)
    found = room.best(default, default.placements)
    if found is None or not (found.plan.victims or room.fits_now(default, found.placement)):
        return None
    victims = (world.models[name] for name in found.plan.victims)
    return _Return(max((_gives_way_at(world, model) for model in victims), default=-math.inf), found)


def _gives_way_at(world: World, model: Model) -> Seconds:
    """When a model leaves for the default one; never where a request wants it to stay, or frozen ones are in it."""
    if not isinstance(model.state, Serving):
        return math.inf if model.frozen else -math.inf
    if not model.is_idle:
        return math.inf
    stays = model.idle_seconds
    if model.keep_alive_seconds is None and stays == math.inf:
        stays = world.limits.default_returns_seconds
    return max(model.idle_since + stays, model.state.since + world.limits.min_active_seconds)


def is_held(world: World, model: Model) -> bool:
    """Whether a pin or the operator's mode keeps the model on the GPU."""
    return model.kept or (isinstance(world.mode, Manual) and world.mode.allowed == model.name)
