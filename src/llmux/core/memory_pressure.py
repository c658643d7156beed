"""Memory pressure: programs that are not ours have taken GPU memory, and idle models make room for them."""

import math
from collections.abc import Iterator

from llmux.core.eviction import STOP, Process
from llmux.core.identifiers import Footprint, GpuId, Seconds
from llmux.core.idleness import is_held, leave
from llmux.core.lifecycle import begin_evict
from llmux.core.model import Model
from llmux.core.placement import less
from llmux.core.states import Asleep, Draining, Evicting, Serving
from llmux.core.world import World


def note(world: World, missing: Footprint) -> None:
    """Remember what is missing, less what is on its way off the GPUs already."""
    world.missing = dict(missing)
    for model in world.on_gpu.values():
        if isinstance(model.state, Draining | Evicting):
            _gain(world.missing, model.awake)


def relieve(world: World) -> Seconds:
    """Have idle models leave until as much is free as is missing; returns when the next one may.

    Models that serve leave as configured, those idle for longest first; then sleepers are stopped, those used longest
    ago first. How much a sleeper still has is often not known: then one is stopped, and looking again tells whether
    that was enough. Whoever is busy stays, and so does what the operator holds on the GPU.
    """
    if not world.missing or not any(world.missing.values()):
        return math.inf
    next_at = math.inf
    for model in sorted(_idle(world), key=lambda model: model.idle_since):
        assert isinstance(model.state, Serving)
        may_leave_at = model.state.since + world.limits.min_active_seconds
        if may_leave_at > world.clock.now:
            next_at = min(next_at, may_leave_at)
        elif _helps(world.missing, model.awake):
            _gain(world.missing, less(model.awake, model.placement.residue(model.eviction)))
            leave(world, model)
    for model in sorted(_sleepers(world), key=lambda model: model.last_served_at):
        if _helps(world.missing, model.awake):
            _gain(world.missing, model.held or {gpu: world.gpus.capacity[gpu] for gpu in model.awake})
            begin_evict(world, model, STOP)
    return next_at


def _idle(world: World) -> Iterator[Model]:
    """The models on the GPUs that nobody uses, and whose leaving gives memory back."""
    for model in world.on_gpu.values():
        may_leave = not model.spec.is_gpu_lease and not is_held(world, model)
        if model.is_idle and may_leave and model.spec.frees_memory(model.eviction):
            yield model


def _sleepers(world: World) -> Iterator[Model]:
    """The sleeping models whose processes may hold GPU memory, and that nobody waits for."""
    for model in world.models.values():
        if not isinstance(model.state, Asleep) or model.state.eviction.process is Process.CHECKPOINT:
            continue
        if model.spec.uses_gpu and not model.is_asked_for and model.name not in world.switches:
            yield model


def _helps(missing: Footprint, held: Footprint) -> bool:
    return any(missing.get(gpu, 0) > 0 for gpu in held)


def _gain(missing: dict[GpuId, int], freed: Footprint) -> None:
    """Subtract what becomes free; a GPU of which nothing is missing any more stays listed until it is looked again."""
    for gpu, mib in freed.items():
        if gpu in missing:
            missing[gpu] = max(0, missing[gpu] - mib)
