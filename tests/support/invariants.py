"""The scheduler's internal consistency: every index equals what is computed anew from the models."""

import math
from itertools import combinations

from llmux.core.eviction import STOP, Eviction
from llmux.core.host_memory import has_room_for
from llmux.core.identifiers import GpuId
from llmux.core.model import Model
from llmux.core.placement import free_memory
from llmux.core.policy_view import SchedulerView
from llmux.core.request import Priority
from llmux.core.scheduler import Scheduler
from llmux.core.states import ON_GPU, Asleep, Cold, Draining, Evicting, Failed, Serving, Stuck, Waking
from llmux.core.switching import occupy_every_gpu
from llmux.core.vacating import Room
from llmux.core.waiting import Behind, ForDrain, ForGpuLease, ForMemory
from llmux.core.world import World


def check_invariants(scheduler: Scheduler, now: float) -> None:
    """Raise AssertionError naming what is out of order."""
    world = scheduler._world
    for model in world.models.values():
        _check_model(world, model, now)
    _check_indexes(world, now)
    _check_memory(world)
    _check_switches(world)
    _check_starts(world)
    _check_short_cuts(world)
    _check_known_plans(world, now)
    _check_bounds(world)
    _check_wait_reasons(scheduler, now)
    _check_timer(scheduler, now)
    assert not world.actions, "actions were left over"


def _check_model(world: World, model: Model, now: float) -> None:
    assert len(model.in_flight) <= model.spec.max_in_flight, f"{model.name}: more in flight than allowed"
    if model.in_flight:
        assert isinstance(model.state, Serving | Draining), f"{model.name}: in flight while {model.state}"
    if model.frozen:
        assert isinstance(model.state, Evicting | Asleep | Waking), f"{model.name}: frozen while {model.state}"
        assert not isinstance(model.state, Evicting) or model.state.eviction.keeps_process, (
            f"{model.name}: being stopped"
        )
        assert not isinstance(model.state, Waking) or not model.state.from_cold, f"{model.name}: a cold start"
        assert world.stopping_until is None or now < world.stopping_until, f"{model.name}: frozen after the end"
    assert len(model.queue) == sum(len(model.queue.line(priority)) for priority in Priority), f"{model.name}: size"
    for priority in Priority:
        line = model.queue.line(priority)
        arrivals = [request.arrived_at for request in line]
        assert arrivals == sorted(arrivals), f"{model.name}: the {priority} line is not in order of arrival"
        assert all(request.priority is priority for request in line), f"{model.name}: {priority} has others in it"
    if model.queue:
        assert world.allows(model.name), f"{model.name}: requests wait though the mode refuses them"
        assert world.stopping_until is None, f"{model.name}: requests wait during shutdown"
        if isinstance(model.state, Serving):
            assert not model.has_free_place, f"{model.name}: requests wait though it serves and has a free place"
        if isinstance(model.state, Failed) and model.state.refusing:
            assert model.state.retry_at <= now, f"{model.name}: requests wait though it refuses them"
    if isinstance(model.state, Draining) and now >= model.state.deadline:
        raise AssertionError(f"{model.name}: still draining after its deadline")
    if isinstance(model.state, Draining) and not model.in_flight:
        has_room = has_room_for(world, model, model.state.eviction)
        assert not has_room and world.stopping_until is None, f"{model.name}: drained, but not evicted"


def _check_indexes(world: World, now: float) -> None:
    models = world.models.values()
    assert world.on_gpu == {m.name: m for m in models if isinstance(m.state, ON_GPU)}
    assert world.gpu_leases == {m.name: m for m in models if m.spec.is_gpu_lease}
    assert world.draining == {m.name: m for m in models if isinstance(m.state, Draining)}
    assert world.in_host_memory == {m.name: m for m in models if isinstance(m.state, Asleep) and m.sleep.held_mib}
    asleep_since = [model.state_since for model in world.in_host_memory.values()]
    assert asleep_since == sorted(asleep_since)
    assert all(m.sleep.held_mib == m.sleep.footprint_mib(m.state) for m in models)
    assert world.host_mib == sum(m.sleep.held_mib for m in models)
    assert all(model.will_hold == model.remainder(model.state) for model in models)
    assert world.gpus.expected == free_memory(world.gpus.capacity, [model.will_hold for model in models])
    for gpu in world.gpus.capacity:
        assert world.gpus.models_on[gpu] == {m.name: m for m in world.on_gpu.values() if gpu in m.awake}
        assert world.gpus.residues_on[gpu] == {m.name: m for m in world.gpus.with_residue.values() if gpu in m.held}
    assert all(m.starts_cold == isinstance(m.state, Cold | Failed) for m in models)
    assert all(m.eviction == _eviction(m) and m.frees_memory == m.spec.frees_memory(m.eviction) for m in models)
    numbered = {m.need_number: (m.starts_cold, m.need) for m in models}
    assert all(numbered[m.need_number] == (m.starts_cold, m.need) for m in models)
    assert all(m.starts_engine == _starts_engine(m) for m in models)
    assert all(m.placements == (m.places if m.starts_cold else (m.placement,)) for m in models)
    assert world.gpus.with_residue == {m.name: m for m in models if isinstance(m.state, Asleep) and m.held}
    backing_off = {m.name: m for m in models if isinstance(m.state, Failed | Stuck) and m.state.retry_at > now}
    assert all(model.held == model.footprint(model.state) for model in models)
    assert world.gpus.free == free_memory(world.gpus.capacity, [model.held for model in models])
    assert world.backing_off == ({} if world.shutdown_reported else backing_off)
    demanded = {m.name for m in models if m.queue or m.frozen}
    wanted = {m.name for m in models if m.name in demanded and m.can_be_woken and world.allows(m.name)}
    assert set(world.candidates) == wanted, f"candidates {set(world.candidates)}, wanted {wanted}"
    for name in wanted:
        model = world.models[name]
        since = [r.arrived_at for r in model.queue] + [r.waiting_since for r in model.frozen]
        expected = max(min(since) + _max_wait(world, model), model.last_served_at)
        assert world.candidates.overdue_at(name) == expected, f"{name}: wrong place among the candidates"
    first = world.candidates.first()
    assert first is None or first[0] == next(iter(world.candidates))
    assert world.queued_requests == sum(len(m.queue) for m in models)
    assert world.frozen_requests == sum(len(m.frozen) for m in models)
    assert world.queued_bytes == sum(r.size_bytes for m in models for r in m.queue)


def _eviction(model: Model) -> Eviction:
    chosen = model.eviction_override or model.spec.eviction
    return STOP if chosen in model.distrusted_evictions else chosen


def _starts_engine(model: Model) -> bool:
    return model.state.from_cold if isinstance(model.state, Waking) else not isinstance(model.state, Asleep)


def _max_wait(world: World, model: Model) -> float:
    own = model.spec.max_wait_seconds
    return world.limits.max_wait_seconds if own is None else own


def _check_memory(world: World) -> None:
    free: dict[GpuId, int] = dict(world.gpus.capacity)
    for model in world.models.values():
        for gpu, size in model.held.items():
            free[gpu] -= size
    corrected = [model for model in world.models.values() if model.places is not model.spec.placements]
    for gpu, size in free.items():
        grown = [model.name for model in corrected if gpu in model.held]
        assert size >= 0 or grown, f"over-committed: {free}"


def _check_switches(world: World) -> None:
    draining: set[str] = set()
    for name, switch in world.switches.items():
        assert name == switch.target
        assert name not in switch.victims
        waking = isinstance(world.models[name].state, Waking)
        assert waking == switch.is_waking, f"{name}: switch and state disagree on waking"
        drains = {victim for victim in switch.victims if isinstance(world.models[victim].state, Draining)}
        assert draining.isdisjoint(drains), f"two switches count on {draining & drains}"
        draining |= drains
    waking_models = {m.name for m in world.models.values() if isinstance(m.state, Waking)}
    assert world.stopping_until is not None or waking_models <= set(world.switches), "waking without a switch"
    assert world.stopping_until is None or not world.switches


def _check_starts(world: World) -> None:
    """An engine that starts looks at what is free, so that nothing else may come to its GPUs meanwhile."""
    waking = [(m, m.state) for m in world.models.values() if isinstance(m.state, Waking)]
    for (one, state), (other, others_state) in combinations(waking, 2):
        if state.from_cold or others_state.from_cold:
            assert set(one.awake).isdisjoint(other.awake), f"{one.name} and {other.name} come to one GPU, one cold"


def _check_short_cuts(world: World) -> None:
    """Where arrivals are taken without settling, a decision would find that nobody can come."""
    if world.switches and not world.commands and occupy_every_gpu(world):
        assert SchedulerView(world).first_available() is None, "a model could come though every GPU is occupied"


def _check_known_plans(world: World, now: float) -> None:
    """What is kept of who would leave for a place is what a room in which nobody has claimed anything says anew."""
    kept = world.gpus.known_plans
    for model in world.models.values():
        if not world.rules.is_like_others(model):
            continue
        for place, known in zip(model.placements, kept.of(model), strict=True):
            if known is None or known.depends or known.changes != sum(kept.changes[gpu] for gpu in place.awake):
                continue
            anew = Room(world, ())._priced_plan(model, place.awake, ())
            assert anew == ((known.plan, known.price(now)) if known.is_possible else None), model.name


def _check_bounds(world: World) -> None:
    assert (
        len(world.deadlines)
        <= 2 * (world.queued_requests + world.frozen_requests) + 1024 + 1 + world.limits.queue_limit_requests
    )
    assert len(world.commands) <= world.limits.commands_max
    assert world.queued_bytes <= world.limits.queue_limit_bytes + sum(
        r.size_bytes for m in world.models.values() for r in m.queue if r.attempts
    )


def _check_timer(scheduler: Scheduler, now: float) -> None:
    world = scheduler._world
    due = [request.deadline for m in world.models.values() for request in (*m.queue, *m.frozen)]
    assert None not in due, "a waiting request without a deadline"
    due += [m.state.deadline for m in world.models.values() if isinstance(m.state, Draining)]
    if world.stopping_until is not None and world.frozen_requests:
        due.append(world.stopping_until)
    due += [m.state.retry_at for m in world.backing_off.values() if isinstance(m.state, Failed | Stuck)]
    due = [at for at in due if at != math.inf]
    if due:
        assert scheduler._timer is not None, "something is due and no timer is set"
        assert scheduler._timer <= min(due), "the timer is later than what is due"


def _check_wait_reasons(scheduler: Scheduler, now: float) -> None:
    """Whoever waits is told for what, and what is told is so."""
    world = scheduler._world
    asked_for = {model.name for model in world.models.values() if model.is_asked_for}
    if not asked_for:
        return
    free, placements = dict(world.gpus.free), [model.placement for model in world.models.values()]
    reasons = scheduler.wait_reasons(now)
    assert reasons.keys() == asked_for, "not every wait has a reason"
    for name, reason in reasons.items():
        match reason:
            case ForDrain(models=models, left_seconds_max=left):
                assert models and all(isinstance(world.models[one].state, Draining) for one in models), name
                assert left >= 0, f"{name}: waits for a drain that is over"
            case ForMemory(models=models):
                assert models and name not in models, f"{name}: waits for nobody or for itself"
            case ForGpuLease(lease=lease):
                assert world.gpu_leases[lease].held, f"{name}: waits for a GPU lease that holds nothing"
            case Behind(model=first):
                assert first != name, f"{name}: is behind itself"
                is_wanted = first in world.candidates or first in world.switches
                assert is_wanted or world.commands, f"{name}: is behind {first}, which nobody wants"
            case _:
                pass
    assert free == world.gpus.free, "telling reasons has changed the memory"
    assert placements == [model.placement for model in world.models.values()], "telling reasons has moved a model"
