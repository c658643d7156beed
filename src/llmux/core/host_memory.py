"""Host memory of sleeping models under ``host_memory_max``: what they hold, and whether one more may keep its own."""

from llmux.core.eviction import STOP, Eviction
from llmux.core.model import Model
from llmux.core.states import Draining, Evicting
from llmux.core.world import World


def excess_mib(world: World) -> int:
    """By how much the sleepers will exceed the maximum, with those that wait to be some; negative where there is room.

    What is being given back does not count any more, so that no more is made to go than necessary.
    """
    maximum = world.limits.host_memory_max_mib
    assert maximum is not None
    waiting = sum(model.sleep.expected_mib(state.eviction) or 0 for model, state in waiting_for_room(world))
    return world.host_mib + waiting - returning_mib(world) - maximum


def returning_mib(world: World) -> int:
    """What sleepers that are going deeper are expected to give back."""
    total = 0
    for model in world.on_gpu.values():
        if isinstance(model.state, Evicting) and model.state.asleep is not None:
            total += max(0, model.sleep.held_mib - (model.sleep.expected_mib(model.state.eviction) or 0))
    return total


def waiting_for_room(world: World) -> list[tuple[Model, Draining]]:
    """The models that have drained and wait to leave until others have given back host memory."""
    draining = ((model, model.state) for model in world.draining.values() if not model.in_flight)
    return [(model, state) for model, state in draining if isinstance(state, Draining)]


def has_room_for(world: World, model: Model, eviction: Eviction) -> bool:
    """Whether the model may sleep so beside the others, as far as is known: what has not been measured yet is tried."""
    maximum = world.limits.host_memory_max_mib
    needed_mib = model.sleep.expected_mib(eviction)
    return maximum is None or not needed_mib or world.host_mib + needed_mib <= maximum


def way_out(world: World, model: Model, draining: Draining) -> Eviction | None:
    """How a model that has drained leaves; None while it waits for room. That ends at the drain's deadline."""
    if has_room_for(world, model, draining.eviction) or world.stopping_until is not None:
        return draining.eviction
    if world.clock.now < draining.deadline:
        return None
    return _nearest_that_fits(world, model, draining.eviction) or STOP


def way_out_at_once(world: World, model: Model, eviction: Eviction) -> Eviction:
    """How a model leaves whose requests are frozen with it, so that it can neither wait for room nor be stopped.

    Where nothing fits it leaves as it was to, and others go deeper meanwhile.
    """
    if has_room_for(world, model, eviction):
        return eviction
    found = _nearest_that_fits(world, model, eviction)
    return found if found is not None and found.keeps_process else eviction


def _nearest_that_fits(world: World, model: Model, eviction: Eviction) -> Eviction | None:
    for deeper in model.spec.ladder:
        if (
            deeper.depth > eviction.depth
            and deeper not in model.distrusted_evictions
            and has_room_for(world, model, deeper)
        ):
            return deeper
    return None
