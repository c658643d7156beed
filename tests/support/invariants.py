"""The scheduler's internal consistency: every index equals what is computed anew from the models."""

from llmux.core.identifiers import GpuId
from llmux.core.model import Model
from llmux.core.placement import free_memory
from llmux.core.request import Priority
from llmux.core.scheduler import Scheduler
from llmux.core.states import ON_GPU, Asleep, Draining, Evicting, Failed, Serving, Stuck, Waking
from llmux.core.world import World


def check_invariants(scheduler: Scheduler, now: float) -> None:
    """Raise AssertionError naming what is out of order."""
    world = scheduler._world
    for model in world.models.values():
        _check_model(world, model, now)
    _check_indexes(world, now)
    _check_memory(world)
    _check_switches(world)
    _check_bounds(world)
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
    assert not isinstance(model.state, Draining) or model.in_flight, f"{model.name}: drained, but not evicted"


def _check_indexes(world: World, now: float) -> None:
    models = world.models.values()
    assert world.on_gpu == {m.name: m for m in models if isinstance(m.state, ON_GPU)}
    assert world.draining == {m.name: m for m in models if isinstance(m.state, Draining)}
    assert world.with_residue == {m.name: m for m in models if isinstance(m.state, Asleep) and m.held}
    backing_off = {m.name: m for m in models if isinstance(m.state, Failed | Stuck) and m.state.retry_at > now}
    assert all(model.held == model.footprint(model.state) for model in models)
    assert world.free == free_memory(world.capacity, [model.held for model in models])
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


def _max_wait(world: World, model: Model) -> float:
    own = model.spec.max_wait_seconds
    return world.limits.max_wait_seconds if own is None else own


def _check_memory(world: World) -> None:
    free: dict[GpuId, int] = dict(world.capacity)
    for model in world.models.values():
        for gpu, size in model.held.items():
            free[gpu] -= size
    assert all(size >= 0 for size in free.values()), f"over-committed: {free}"


def _check_switches(world: World) -> None:
    taken: set[GpuId] = set()
    for name, switch in world.switches.items():
        assert name == switch.target
        assert name not in switch.victims
        waking = isinstance(world.models[name].state, Waking)
        assert waking == switch.is_waking, f"{name}: switch and state disagree on waking"
        gpus = set(world.models[name].awake)
        assert taken.isdisjoint(gpus), "two switches for one GPU"
        taken |= gpus
    waking_models = {m.name for m in world.models.values() if isinstance(m.state, Waking)}
    assert world.stopping_until is not None or waking_models <= set(world.switches), "waking without a switch"
    assert world.stopping_until is None or not world.switches


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
    if due:
        assert scheduler._timer is not None, "something is due and no timer is set"
        assert scheduler._timer <= min(due), "the timer is later than what is due"
