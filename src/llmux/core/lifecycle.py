"""One model's way onto the GPU and off it: the transitions, and what each outcome means."""

from llmux.core.actions import Evict, SwitchDone, SwitchFailed, Wake
from llmux.core.admission import admit_waiting, freeze_all, lose_frozen, refuse_all, revoke_all, thaw_all
from llmux.core.events import EvictDone, InstanceExited, WakeDone
from llmux.core.eviction import STOP, Drain, Eviction, Process
from llmux.core.identifiers import Seconds
from llmux.core.model import Model
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, Stuck, Waking
from llmux.core.world import Claim, World
from llmux.errors import EngineDied, EngineUnavailable, Evicted, ShuttingDown

CRASHES_BEFORE_REFUSING = 2
STOPPED_WHILE_FROZEN = "the engine had to be stopped while the request was suspended in it"


def begin_drain(world: World, model: Model, eviction: Eviction, deadline: Seconds, now: Seconds) -> None:
    """Admit nothing more to a serving model and let what it has in flight end."""
    assert isinstance(model.state, Serving)
    model.look(now)
    world.set_state(model, Draining(now, model.state.since, deadline, eviction), now)
    if model.spec.drain is Drain.ABORT:
        revoke_all(world, model, Evicted(model.name), now)


def freezes(world: World, model: Model, eviction: Eviction) -> bool:
    """Whether a switch suspends the model's requests; not where nobody could bring them back."""
    return model.spec.drain is Drain.FREEZE and model.can_freeze and eviction.keeps_process and world.allows(model.name)


def begin_freeze(world: World, model: Model, eviction: Eviction, now: Seconds) -> None:
    """Have a serving model leave at once, its requests suspended with it."""
    model.look(now)
    freeze_all(world, model, now)
    begin_evict(world, model, eviction, now)


def stop_draining(world: World, model: Model, now: Seconds) -> None:
    """The switch was called off: the model goes on as before."""
    assert isinstance(model.state, Draining)
    model.pass_time(now)
    world.set_state(model, Serving(model.state.serving_since), now)
    admit_waiting(world, model, now)


def finish_drain(world: World, model: Model, now: Seconds) -> None:
    """Evict a draining model once nothing is in flight; at its deadline the leases are taken back first."""
    assert isinstance(model.state, Draining)
    if model.in_flight and now >= model.state.deadline:
        error = ShuttingDown() if world.stopping_until is not None else Evicted(model.name)
        revoke_all(world, model, error, now)
    if not model.in_flight:
        model.traffic.drained(now - model.state.since)
        begin_evict(world, model, model.state.eviction, now)


def begin_evict(world: World, model: Model, eviction: Eviction, now: Seconds, crash: str | None = None) -> None:
    """Have an instance brought off the GPU; nothing of it may be in flight. Stopping it loses what is frozen in it."""
    assert not model.in_flight
    if not eviction.keeps_process:
        lose_frozen(world, model, EngineDied(model.name, crash or STOPPED_WHILE_FROZEN), now)
    match model.state:
        case Asleep(eviction=asleep) | Stuck(asleep=asleep):
            pass
        case _:
            asleep = None
    world.set_state(model, Evicting(now, eviction, crash, asleep), now)
    world.emit(Evict(model.instance, eviction, freeze=bool(model.frozen)))


def begin_wake(world: World, model: Model, now: Seconds) -> None:
    """Have a model brought onto the GPU; its memory is held from now on."""
    asleep = model.state.eviction if isinstance(model.state, Asleep) else None
    if asleep is None:
        model.begin_generation()
    world.set_state(model, Waking(now, asleep), now)
    world.emit(Wake(model.instance, asleep))


def wake_done(world: World, model: Model, event: WakeDone, now: Seconds) -> None:
    """The model serves and its waiters go first, or the attempt failed."""
    assert isinstance(model.state, Waking)
    claim = world.claims.pop(model.name, None)
    if event.error is not None:
        lose_frozen(world, model, EngineDied(model.name, event.error), now)
        sleeper = _cheapest_sleeper(world) if event.out_of_memory and not model.retried_after_oom else None
        if claim is not None and sleeper is not None:
            _retry_after_oom(world, model, claim, sleeper, event.error, now)
        else:
            _wake_failed(world, model, event.error, unfaithful=event.unfaithful, now=now)
        return
    model.retried_after_oom = False
    model.can_freeze = event.can_freeze
    if not model.state.from_cold or not model.eviction.keeps_process:
        # The first start of a model that will sleep from then on says nothing about its wakes.
        world.costs.observe_wake(model.name, now - model.state.since)
    model.wake_seconds = 0.0 if model.state.from_cold else now - model.state.since
    model.idle_since = now
    if claim is not None:
        _report_switch(world, claim, now)
    world.set_state(model, Serving(now), now)
    model.traffic.resume(now)
    thaw_all(world, model)
    admit_waiting(world, model, now)


def _cheapest_sleeper(world: World) -> Model | None:
    """The sleeping model with a running engine that was used the longest ago, rather one with nothing frozen in it.

    An image on disk holds no memory.
    """
    sleepers = [
        model
        for model in world.models.values()
        if isinstance(model.state, Asleep) and model.state.eviction.process is not Process.CHECKPOINT
    ]
    return min(sleepers, key=lambda model: (bool(model.frozen), model.last_served_at), default=None)


def _retry_after_oom(world: World, model: Model, claim: Claim, sleeper: Model, error: str, now: Seconds) -> None:
    """Stop a sleeper, whose residue may be what was in the way, and try once more."""
    model.retried_after_oom = True
    world.emit(SwitchFailed(model.name, f"{error}; stopping the sleeping '{sleeper.name}' to make room"))
    world.set_state(model, Failed(error, now, refusing=False), now)
    world.claims[model.name] = Claim(model.name, (*claim.victims, sleeper.name), claim.wanted_at, claim.drain_began_at)
    begin_evict(world, sleeper, STOP, now)


def _wake_failed(world: World, model: Model, error: str, *, unfaithful: bool, now: Seconds) -> None:
    """Back off; but where only the way back was bad, start the engine anew at once."""
    assert isinstance(model.state, Waking)
    asleep = model.state.asleep
    if unfaithful and asleep is not None:
        # How it left and how it should have: where it fell back, it would only do the same again.
        model.unfaithful.update(eviction for eviction in (asleep, model.eviction) if eviction.keeps_process)
    if world.stopping_until is not None:
        world.set_state(model, Cold(), now)
        return
    world.emit(SwitchFailed(model.name, error, asleep if unfaithful else None))
    model.last_served_at = now
    model.failures += 1
    model.retried_after_oom = False
    bad_way_back = unfaithful or (asleep is not None and asleep.process is Process.CHECKPOINT)
    pause = 0.0 if bad_way_back and model.failures == 1 else world.limits.backoff_seconds(model.failures)
    _fail(world, model, error, pause, refusing=model.state.from_cold, now=now)


def _crashed(world: World, model: Model, reason: str, now: Seconds) -> None:
    """An engine that had worked is started again at once; one that dies before it completes a request backs off."""
    model.failures += 1
    pause = world.limits.backoff_seconds(model.failures - 1) if model.failures > 1 else 0.0
    _fail(world, model, reason, pause, refusing=model.failures >= CRASHES_BEFORE_REFUSING, now=now)


def _fail(world: World, model: Model, reason: str, pause: Seconds, *, refusing: bool, now: Seconds) -> None:
    world.set_state(model, Failed(reason, now + pause, refusing), now)
    if refusing:
        refuse_all(world, model, EngineUnavailable(model.name, reason, pause), now)


def evict_done(world: World, model: Model, event: EvictDone, now: Seconds) -> None:
    """The instance is off the GPU, or still holds it."""
    state = model.state
    assert isinstance(state, Evicting)
    if event.error is not None or isinstance(event.residency, Cold):
        lose_frozen(world, model, EngineDied(model.name, event.error or STOPPED_WHILE_FROZEN), now)
    if event.error is not None:
        model.failures += 1
        retry_at = now + world.limits.backoff_seconds(model.failures)
        world.set_state(model, Stuck(event.error, retry_at, state.asleep), now)
    elif state.crash is not None and world.stopping_until is None:
        _crashed(world, model, state.crash, now)
    else:
        if state.eviction == model.eviction and state.asleep is None:
            world.costs.observe_evict(model.name, now - state.since)
        world.set_state(model, event.residency, now)


def instance_exited(world: World, model: Model, event: InstanceExited, now: Seconds) -> None:
    """An engine died by itself: its leases are taken back, and what is left of it is stopped."""
    if event.instance != model.instance:
        return
    match model.state:
        case Serving() | Draining():
            revoke_all(world, model, EngineDied(model.name, event.reason), now)
            begin_evict(world, model, STOP, now, crash=event.reason)
        case Asleep():
            begin_evict(world, model, STOP, now)
        case _:
            # Waking and evicting engines: the outcome that is under way reports it.
            pass


def _report_switch(world: World, claim: Claim, now: Seconds) -> None:
    wake_began_at = claim.wake_began_at if claim.wake_began_at is not None else now
    evict_began_at = claim.evict_began_at if claim.evict_began_at is not None else wake_began_at
    world.emit(
        SwitchDone(
            previous=claim.victims[0] if claim.victims else "",
            model=claim.target,
            cooldown_seconds=claim.drain_began_at - claim.wanted_at,
            drain_seconds=evict_began_at - claim.drain_began_at,
            sleep_seconds=wake_began_at - evict_began_at,
            wake_seconds=now - wake_began_at,
        )
    )
