"""GPU leases in the world: asked for, held, over. What they hold, no model can be given."""

from llmux.core.actions import Reject
from llmux.core.admission import arrive, revoke_all
from llmux.core.eviction import STOP
from llmux.core.gpu_lease import GpuLease
from llmux.core.lifecycle import begin_evict
from llmux.core.model import Model
from llmux.core.placement import fits, free_memory
from llmux.core.states import Cold, Failed, Serving, Stuck
from llmux.core.world import World
from llmux.errors import QueueFull, ShuttingDown


def ask(world: World, lease: GpuLease) -> None:
    """A program wants GPU memory: it waits for it, or is refused as a request would be."""
    if len(world.gpu_leases) >= world.limits.gpu_leases_max:
        world.emit(Reject(lease, QueueFull(f"at most {world.limits.gpu_leases_max} GPU leases at a time")))
        return
    world.add_gpu_lease(lease.spec)
    arrive(world, lease)


def end_released(world: World) -> None:
    """Take back the memory of leases that nobody holds any more, and forget those that have given it back."""
    for model in list(world.gpu_leases.values()):
        if model.queue:
            continue
        match model.state:
            case Serving() if not model.in_flight:
                begin_evict(world, model, STOP)
            case Cold() | Failed() if model.name not in world.switches:
                world.remove_gpu_lease(model)
            case _:
                pass


def release_all(world: World) -> None:
    """llmux is shutting down: nobody else needs the memory, so that no program has to end for it."""
    for model in world.gpu_leases.values():
        if model.in_flight:
            revoke_all(world, model, ShuttingDown())


def is_leased_out(world: World, model: Model) -> bool:
    """Whether the model could come nowhere before GPU leases end, beside those models that do not leave for it.

    Nobody knows for how long that is, so it neither waits for a switch nor keeps memory free.
    """
    leased = [one.held for one in world.gpu_leases.values() if isinstance(one.state, Serving | Stuck)]
    if not leased:
        return False
    there = (other for other in world.rules.may_stay if isinstance(other.state, Serving))
    leased += [other.awake for other in world.rules.staying_beside(model, there)]
    left = free_memory(world.gpus.capacity, leased)
    return not any(fits(place.awake, left) for place in model.placements)


def lease_in_the_way(world: World, model: Model) -> Model | None:
    """A lease without whose end the model cannot come onto the GPUs; None if there is none."""
    if not is_leased_out(world, model):
        return None
    wanted = model.possible_gpus
    return next((one for one in world.gpu_leases.values() if not wanted.isdisjoint(one.held)), None)
