"""Requests: into the queue, out to the engine, back again, or away."""

from itertools import takewhile

from llmux.core.actions import Admit, Freeze, Reject, Revoke, Thaw
from llmux.core.events import RequestArrived, RequestReturned
from llmux.core.identifiers import Seconds
from llmux.core.model import Frozen, Model, Waiting
from llmux.core.states import Failed, Manual, Serving
from llmux.core.world import World
from llmux.errors import (
    EngineDied,
    EngineUnavailable,
    ModelNotAllowed,
    ModelNotLoaded,
    QueueFull,
    QueueTimeout,
    RequestError,
    ShuttingDown,
)


def is_open(world: World, model: Model) -> bool:
    """Whether a request for the model would be admitted without waiting."""
    return (
        type(model.state) is Serving
        and not model.waiting
        and len(model.in_flight) < model.spec.max_in_flight
        and world.stopping_until is None
        and world.allows(model.name)
    )


def arrive(world: World, event: RequestArrived, now: Seconds) -> None:
    """A new request: admitted, queued or refused."""
    model = world.models[event.model]
    opened = is_open(world, model)
    refusal = _refusal(world, model, event, opened, now)
    if refusal is not None:
        world.emit(Reject(event.request, refusal))
    elif opened or (not event.may_wake and isinstance(model.state, Serving)):
        model.traffic.arrived += 1
        admit(world, model, event.request, event.streams, now)
    else:
        model.traffic.arrived += 1
        deadline = now + world.limits.request_timeout_seconds
        waiting = Waiting(now, deadline, 0, event.size_bytes, event.priority, event.streams)
        _enqueue(world, model, event.request, waiting, now)
        model.lanes.add(event.request, event.priority, now)
        if len(model.waiting) == 1:  # else it is not the head that this changed
            world.refresh_turn(model, now)


def come_back(world: World, event: RequestReturned, now: Seconds) -> None:
    """A request that lost its engine goes to the front of the queue, as often as is allowed."""
    model = world.models[event.model]
    finish(world, model, event.request, False, now)
    refusal = _standing_refusal(world, model, now)
    if event.attempts >= world.limits.attempts_max or not event.may_wake:
        refusal = EngineDied(model.name, event.reason)
    if refusal is not None:
        world.emit(Reject(event.request, refusal))
    else:
        deadline = now + world.limits.request_timeout_seconds
        waiting = Waiting(event.arrived_at, deadline, event.attempts, event.size_bytes, event.priority, event.streams)
        _enqueue(world, model, event.request, waiting, now)
        _move_before_the_younger(model, event.request)
        model.lanes.add_again(event.request, event.priority, event.arrived_at)
        world.refresh_turn(model, now)
    admit_waiting(world, model, now)


def admit(world: World, model: Model, request: int, streams: bool, now: Seconds) -> None:
    """Count a request as in flight and let it go."""
    model.begin(request, streams=streams, now=now)
    world.emit(Admit(request, model.instance))


def admit_waiting(world: World, model: Model, now: Seconds) -> None:
    """Let waiting requests go while the model serves and has room."""
    if not isinstance(model.state, Serving) or not world.allows(model.name):
        return
    while model.has_room and (request := model.lanes.first()) is not None:
        waiting = _dequeue(world, model, request, now)
        admit(world, model, request, waiting.streams, now)
    world.refresh_turn(model, now)


def leave(world: World, model: Model, request: int, now: Seconds) -> None:
    """A waiting client left."""
    if request in model.waiting:
        _dequeue(world, model, request, now)
        world.refresh_turn(model, now)


def finish(world: World, model: Model, request: int, completed: bool, now: Seconds) -> None:
    """An admitted request ended, frozen or not; ends that were already taken account of are ignored."""
    if request in model.in_flight:
        model.end(request, now)
    elif request in model.frozen:
        _take_frozen(world, model, request, now)
    else:
        return
    if completed:
        model.failures = 0


def expire(world: World, now: Seconds) -> None:
    """End the requests that have waited too long."""
    while (expired := world.next_expired(now)) is not None:
        request, model = expired
        if request in model.frozen:
            since = model.frozen[request].since
            _take_frozen(world, model, request, now)
            world.emit(Revoke(request, QueueTimeout(model.name, now - since)))
        else:
            arrived_at = model.waiting[request].arrived_at
            refuse(world, model, request, QueueTimeout(model.name, now - arrived_at), now)


def refuse(world: World, model: Model, request: int, error: RequestError, now: Seconds) -> None:
    """End one waiting request with an error."""
    _dequeue(world, model, request, now)
    world.emit(Reject(request, error))
    world.refresh_turn(model, now)


def refuse_all(world: World, model: Model, error: RequestError, now: Seconds) -> None:
    """End everything that waits for a model with an error."""
    for request in list(model.waiting):
        refuse(world, model, request, error, now)


def revoke_all(world: World, model: Model, error: RequestError, now: Seconds) -> None:
    """Take back every lease of a model; after this nothing of it is in flight."""
    for request in sorted(model.in_flight):
        world.emit(Revoke(request, error))
    model.awaiting_first_token -= model.in_flight
    model.in_flight.clear()
    model.idle_since = now


def freeze_all(world: World, model: Model, now: Seconds) -> None:
    """Suspend what is in flight: it waits with its engine."""
    deadline = now + world.limits.request_timeout_seconds
    for request in sorted(model.in_flight):
        model.frozen[request] = Frozen(now, deadline)
        world.frozen_requests += 1
        world.watch_deadline(request, model, deadline)
        world.emit(Freeze(request))
    model.in_flight.clear()
    model.idle_since = now


def thaw_all(world: World, model: Model) -> None:
    """Let what is frozen go on; it is in flight again, before anything that waits."""
    for request in model.frozen:
        model.in_flight.add(request)
        world.emit(Thaw(request))
    world.frozen_requests -= len(model.frozen)
    model.frozen.clear()


def lose_frozen(world: World, model: Model, error: RequestError, now: Seconds) -> None:
    """The engine that the frozen requests were suspended in is lost: their leases are taken back."""
    for request in list(model.frozen):
        _take_frozen(world, model, request, now)
        world.emit(Revoke(request, error))


def refuse_disallowed(world: World, now: Seconds) -> None:
    """The mode changed: whoever waits for a model that is not served in it, need not wait. What is frozen stays so."""
    for model in world.models.values():
        if model.head_since is None:
            continue
        if not world.allows(model.name):
            refuse_all(world, model, _not_allowed(world, model), now)
        world.refresh_turn(model, now)


def _refusal(world: World, model: Model, event: RequestArrived, opened: bool, now: Seconds) -> RequestError | None:
    standing = _standing_refusal(world, model, now)
    if standing is not None:
        return standing
    if not event.may_wake:
        return None if isinstance(model.state, Serving) and model.has_room else ModelNotLoaded(model.name)
    if opened:
        return None
    if world.queued_requests >= world.limits.queue_limit_requests:
        return QueueFull(f"queue_limit_requests {world.limits.queue_limit_requests}")
    if world.queued_bytes + event.size_bytes > world.limits.queue_limit_bytes:
        return QueueFull(f"queue_limit_bytes {world.limits.queue_limit_bytes}")
    return None


def _standing_refusal(world: World, model: Model, now: Seconds) -> RequestError | None:
    """What stands against every request for the model at present."""
    if world.stopping_until is not None:
        return ShuttingDown()
    if not world.allows(model.name):
        return _not_allowed(world, model)
    if isinstance(model.state, Failed) and model.state.refusing and now < model.state.retry_at:
        return EngineUnavailable(model.name, model.state.reason, model.state.retry_at - now)
    return None


def _not_allowed(world: World, model: Model) -> ModelNotAllowed:
    return ModelNotAllowed(model.name, world.mode.allowed if isinstance(world.mode, Manual) else None)


def _enqueue(world: World, model: Model, request: int, waiting: Waiting, now: Seconds) -> None:
    if not model.waiting:
        model.pass_time(now)
    model.waiting[request] = waiting
    world.queued_requests += 1
    world.queued_bytes += waiting.size_bytes
    world.watch_deadline(request, model, waiting.deadline)


def _move_before_the_younger(model: Model, request: int) -> None:
    arrived_at = model.waiting[request].arrived_at
    older = [other for other, _ in takewhile(lambda entry: entry[1].arrived_at < arrived_at, model.waiting.items())]
    for other in (request, *reversed(older)):
        model.waiting.move_to_end(other, last=False)


def _dequeue(world: World, model: Model, request: int, now: Seconds) -> Waiting:
    if len(model.waiting) == 1:
        model.pass_time(now)
    waiting = model.waiting.pop(request)
    model.lanes.remove(request, waiting.priority)
    world.queued_requests -= 1
    world.queued_bytes -= waiting.size_bytes
    return waiting


def _take_frozen(world: World, model: Model, request: int, now: Seconds) -> None:
    del model.frozen[request]
    model.awaiting_first_token.discard(request)
    world.frozen_requests -= 1
    world.refresh_turn(model, now)
