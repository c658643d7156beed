"""One model's way onto the GPU and off it: the transitions, and what each outcome means."""

from llmux.core.actions import Evict, Hold, SwitchFailed, Wake
from llmux.core.admission import admit_waiting, freeze_all, lose_frozen, refuse_all, revoke_all, thaw_all
from llmux.core.events import EvictDone, InstanceExited, WakeDone
from llmux.core.eviction import STOP, Drain, Eviction, Process
from llmux.core.host_memory import way_out, way_out_at_once
from llmux.core.identifiers import Seconds
from llmux.core.model import Model
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, Stuck, Waking
from llmux.core.world import World
from llmux.errors import EngineDied, EngineUnavailable, Evicted, FailureReason, ShuttingDown

CRASHES_BEFORE_REFUSING = 2
"""The first crash of an engine that had worked is repaired while its requests wait; after another one without a
completed request in between, waiting has little hope, and clients are told so at once."""

STOPPED_WHILE_FROZEN = FailureReason("the engine had to be stopped while the request was suspended in it")


def begin_drain(world: World, model: Model, eviction: Eviction, deadline: Seconds) -> None:
    """Stop admitting to a serving model and let what it has in flight end."""
    assert isinstance(model.state, Serving)
    model.sample()
    world.set_state(model, Draining(world.clock.now, model.state.since, deadline, eviction))
    if model.spec.drain is Drain.ABORT:
        revoke_all(world, model, Evicted(model.name))


def freezes(world: World, model: Model, eviction: Eviction) -> bool:
    """Whether a switch suspends the model's requests rather than draining.

    Not where nothing would bring them back: the process ends, or the mode does not serve the model any more.
    """
    return model.spec.drain is Drain.FREEZE and model.can_freeze and eviction.keeps_process and world.allows(model.name)


def begin_freeze(world: World, model: Model, eviction: Eviction) -> None:
    """Evict a serving model at once, its requests suspended with it."""
    model.sample()
    freeze_all(world, model)
    begin_evict(world, model, way_out_at_once(world, model, eviction))


def stop_draining(world: World, model: Model) -> None:
    """The switch was called off: the model goes on serving."""
    assert isinstance(model.state, Draining)
    model.accrue()
    world.set_state(model, Serving(model.state.serving_since))
    admit_waiting(world, model)


def finish_drain(world: World, model: Model) -> None:
    """Evict a draining model once nothing is in flight; at its deadline the leases are taken back first.

    Where host memory is full, it waits until sleepers have made room for it (``ladder``), or leaves so as to need less.
    """
    assert type(model.state) is Draining
    now = world.clock.now
    if model.in_flight and now >= model.state.deadline:
        error = ShuttingDown() if world.stopping_until is not None else Evicted(model.name)
        revoke_all(world, model, error)
    if not model.in_flight and (eviction := way_out(world, model, model.state)) is not None:
        begin_evict(world, model, eviction)


def begin_evict(world: World, model: Model, eviction: Eviction, crash: FailureReason | None = None) -> None:
    """Have an instance brought off the GPU. Nothing of it may be in flight; stopping it loses what is frozen in it."""
    assert not model.in_flight
    if not eviction.keeps_process:
        lose_frozen(world, model, EngineDied(model.name, crash or STOPPED_WHILE_FROZEN))
    match model.state:
        case Asleep(eviction=asleep) | Stuck(asleep=asleep):
            pass
        case _:
            asleep = None
    model.keep_alive_seconds = None
    world.set_state(model, Evicting(world.clock.now, eviction, crash, asleep))
    world.emit(Evict(model.instance, eviction, freeze=bool(model.frozen)))


def begin_wake(world: World, model: Model) -> None:
    """Have a model brought onto the GPU; its memory is held from now on."""
    asleep = model.state.eviction if isinstance(model.state, Asleep) else None
    if asleep is None:
        model.begin_generation()
    world.set_state(model, Waking(world.clock.now, asleep))
    for request in model.frozen:
        # Before the engine runs again: none of its bytes may reach a client until its output has been checked.
        world.emit(Hold(request))
    world.emit(Wake(model.instance, asleep, tuple(model.awake)))


def wake_succeeded(world: World, model: Model, *, can_freeze: bool) -> None:
    """The model serves. Frozen requests resume first, then the queue is admitted, all within this event."""
    state, now = model.state, world.clock.now
    assert isinstance(state, Waking)
    model.retried_after_oom = False
    model.can_freeze = can_freeze
    if not state.from_cold or not model.eviction.keeps_process:
        # Of a model that will sleep from now on, the first start says nothing about later wakes.
        world.costs.observe_wake(model.name, now - state.since)
    world.costs.observe_return(model.name, STOP if state.asleep is None else state.asleep, now - state.since)
    model.wake_seconds = 0.0 if state.from_cold else now - state.since
    if state.from_cold:
        model.start_seconds = now - state.since
    model.idle_since = now
    model.stays_away = False
    world.set_state(model, Serving(now))
    model.estimates.resume(now)
    thaw_all(world, model)
    admit_waiting(world, model)


def wake_failed(world: World, model: Model, event: WakeDone) -> None:
    """Back off; but where only the way back was bad, start the engine anew at once."""
    state, error = model.state, event.error
    assert isinstance(state, Waking)
    assert error is not None
    asleep = state.asleep
    if event.is_mismatch and asleep is not None:
        # Both how it left and how it was meant to: where it fell back, it would fall back to the same again.
        model.distrusted_evictions.update(eviction for eviction in (asleep, model.eviction) if eviction.keeps_process)
        model.find_eviction()
    if world.stopping_until is not None:
        world.set_state(model, Cold())
        return
    if not model.spec.is_gpu_lease:
        world.emit(SwitchFailed(model.name, str(error), asleep if event.is_mismatch else None))
    model.last_served_at = world.clock.now
    model.failures += 1
    model.retried_after_oom = False
    bad_way_back = event.is_mismatch or (asleep is not None and asleep.process is Process.CHECKPOINT)
    pause = 0.0 if bad_way_back and model.failures == 1 else world.limits.backoff_seconds(model.failures)
    _fail(world, model, error, pause, refusing=state.from_cold)


def wake_out_of_memory(world: World, model: Model, error: FailureReason, sleeper: Model) -> None:
    """The wake failed for want of GPU memory: stop a sleeper, whose residue may have been in the way.

    The caller wakes the model once more when the sleeper is gone; nothing is refused and no back-off begins.
    """
    model.retried_after_oom = True
    if not model.spec.is_gpu_lease:
        world.emit(SwitchFailed(model.name, f"{error}; stopping the sleeping '{sleeper.name}' to make room"))
    world.set_state(model, Failed(error, world.clock.now, refusing=False))
    begin_evict(world, sleeper, STOP)


def evict_done(world: World, model: Model, event: EvictDone) -> None:
    """The instance is off the GPU, or still holds it."""
    state, now = model.state, world.clock.now
    assert isinstance(state, Evicting)
    if event.error is not None or isinstance(event.residency, Cold):
        lose_frozen(world, model, EngineDied(model.name, event.error or STOPPED_WHILE_FROZEN))
    elif isinstance(event.residency, Asleep):
        if event.host_mib is not None:
            model.sleep.measured_mib[event.residency.eviction] = event.host_mib
        if event.residency.eviction == state.asleep:
            model.sleep.refused.add(state.eviction)
    if event.error is not None:
        model.failures += 1
        retry_at = now + world.limits.backoff_seconds(model.failures)
        world.set_state(model, Stuck(event.error, retry_at, state.asleep))
    elif state.crash is not None and world.stopping_until is None:
        _crashed(world, model, state.crash)
    else:
        if state.eviction == model.eviction and state.asleep is None:
            world.costs.observe_evict(model.name, now - state.since)
        world.set_state(model, event.residency)


def instance_exited(world: World, model: Model, event: InstanceExited) -> None:
    """An engine died by itself: its leases are taken back, and what is left of it is stopped."""
    if event.instance != model.instance:
        return
    match model.state:
        case Serving() | Draining():
            revoke_all(world, model, EngineDied(model.name, event.reason))
            begin_evict(world, model, STOP, crash=event.reason)
        case Asleep():
            begin_evict(world, model, STOP)
        case _:
            # A wake or an eviction is under way, and its outcome reports the exit; otherwise no engine runs.
            pass


def _crashed(world: World, model: Model, reason: FailureReason) -> None:
    """An engine that had worked is started again at once; one that dies before it completes a request backs off."""
    model.failures += 1
    pause = world.limits.backoff_seconds(model.failures - 1) if model.failures > 1 else 0.0
    _fail(world, model, reason, pause, refusing=model.failures >= CRASHES_BEFORE_REFUSING)


def _fail(world: World, model: Model, reason: FailureReason, pause: Seconds, *, refusing: bool) -> None:
    world.set_state(model, Failed(reason, world.clock.now + pause, refusing))
    if refusing:
        refuse_all(world, model, EngineUnavailable(model.name, reason, pause))
