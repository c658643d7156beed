"""Models that stay on the GPUs, pinned or in a persistent group, and those that cannot be served beside them.

Requests for the latter are refused: they would wait for a switch that never begins.
"""

from llmux.core import commands, leasing
from llmux.core.admission import lose_frozen, not_allowed, refuse_all
from llmux.core.eviction import STOP
from llmux.core.lifecycle import begin_evict
from llmux.core.model import Model
from llmux.core.placement import fits, free_memory
from llmux.core.states import Asleep, Serving, Waking
from llmux.core.world import World


def settle(world: World) -> None:
    """Find anew who cannot be served, if others than before stay on the GPUs, or in other places.

    Requests that wait for such a model are refused, those that are frozen in it lose their leases, and commands that
    want it fail.
    """
    if world.stopping_until is not None or not (world.rules.may_stay or world.rules.shut_out):
        return
    staying = [model for model in world.rules.may_stay if _is_there(world, model)]
    places = tuple((model.name, id(model.placement), model.kept) for model in staying)
    if places == world.rules.staying and (places or not world.rules.shut_out):
        return
    world.rules.staying = places
    before, world.rules.shut_out = world.rules.shut_out, {}
    for model in world.models.values():
        if (by := _shut_out_by(world, model, staying)) is not None:
            world.rules.shut_out[model.name] = by
    for model in world.models.values():
        if model.name in world.rules.shut_out and model.name not in before:
            refuse_all(world, model, not_allowed(world, model))
            lose_frozen(world, model, not_allowed(world, model))
            commands.fail_switches(world, model, str(not_allowed(world, model)))
        world.update_candidate(model)
    leasing.end_released(world)  # Those that were refused just now.


def _is_there(world: World, model: Model) -> bool:
    """Whether it is on the GPUs or on its way there, and no switch makes it leave."""
    if any(model.name in switch.victims and not switch.is_waking for switch in world.switches.values()):
        return False
    return isinstance(model.state, Waking | Serving) or model.name in world.switches


def _shut_out_by(world: World, model: Model, staying: list[Model]) -> str | None:
    """Which of those that stay keeps a model from being served; None if it can be."""
    others = world.rules.staying_beside(model, staying)
    if not others or not model.spec.uses_gpu:
        return None
    rivals = world.rules.rivals(model.name)
    for other in others:
        if other.name in rivals:
            return other.name
    free = free_memory(world.gpus.capacity, [other.awake for other in others])
    if any(fits(place.awake, free) for place in model.places):
        return None
    gpus = {gpu for place in model.places for gpu in place.awake}
    return next(other.name for other in others if not gpus.isdisjoint(other.awake))


def start_elsewhere(world: World, model: Model) -> None:
    """Stop a sleeping engine whose place one that stays has taken, so that it can be started in another one."""
    if not isinstance(model.state, Asleep) or not world.rules.staying:
        return
    there = (other for other in world.rules.may_stay if _is_there(world, other))
    others = world.rules.staying_beside(model, there)
    if not fits(model.awake, free_memory(world.gpus.capacity, [other.awake for other in others])):
        begin_evict(world, model, STOP)
