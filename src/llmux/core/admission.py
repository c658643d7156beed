"""Requests: into the queue, out to the engine, back again, or away."""

from itertools import takewhile

from llmux.core.actions import Admit, Reject, Revoke
from llmux.core.events import RequestArrived, RequestReturned
from llmux.core.identity import Seconds
from llmux.core.model import Model, Waiting
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
    refusal = _refusal(world, model, event, now)
    if refusal is not None:
        world.emit(Reject(event.request, refusal))
    elif is_open(world, model) or (not event.may_wake and isinstance(model.state, Serving)):
        admit(world, model, event.request)
    else:
        deadline = now + world.limits.request_timeout_seconds
        _enqueue(world, model, event.request, Waiting(now, deadline, 0, event.size_bytes))
        world.refresh_turn(model, now)


def come_back(world: World, event: RequestReturned, now: Seconds) -> None:
    """A request that lost its engine goes to the front of the queue, as often as is allowed."""
    model = world.models[event.model]
    finish(model, event.request, False, now)
    refusal = _standing_refusal(world, model, now)
    if event.attempts >= world.limits.attempts_max or not event.may_wake:
        refusal = EngineDied(model.name, event.reason)
    if refusal is not None:
        world.emit(Reject(event.request, refusal))
    else:
        deadline = now + world.limits.request_timeout_seconds
        _enqueue(world, model, event.request, Waiting(event.arrived_at, deadline, event.attempts, event.size_bytes))
        _move_before_the_younger(model, event.request)
        world.refresh_turn(model, now)
    admit_waiting(world, model, now)


def admit(world: World, model: Model, request: int) -> None:
    """Count a request as in flight and let it go."""
    model.in_flight.add(request)
    world.emit(Admit(request, model.instance))


def admit_waiting(world: World, model: Model, now: Seconds) -> None:
    """Let waiting requests go while the model serves and has room."""
    if not isinstance(model.state, Serving) or not world.allows(model.name):
        return
    while model.waiting and model.has_room:
        request = next(iter(model.waiting))
        _dequeue(world, model, request)
        admit(world, model, request)
    world.refresh_turn(model, now)


def leave(world: World, model: Model, request: int, now: Seconds) -> None:
    """A waiting client left."""
    if request in model.waiting:
        _dequeue(world, model, request)
        world.refresh_turn(model, now)


def finish(model: Model, request: int, completed: bool, now: Seconds) -> None:
    """An admitted request ended; ends that were already taken account of are ignored."""
    if request not in model.in_flight:
        return
    model.in_flight.discard(request)
    model.idle_since = now
    if completed:
        model.failures = 0


def expire(world: World, now: Seconds) -> None:
    """End the requests that have waited too long."""
    for request, model in world.overdue_requests(now):
        arrived_at = model.waiting[request].arrived_at
        refuse(world, model, request, QueueTimeout(model.name, now - arrived_at), now)


def refuse(world: World, model: Model, request: int, error: RequestError, now: Seconds) -> None:
    """End one waiting request with an error."""
    _dequeue(world, model, request)
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
    model.in_flight.clear()
    model.idle_since = now


def refuse_disallowed(world: World, now: Seconds) -> None:
    """The mode changed: whoever waits for a model that is not served in it, need not wait."""
    for model in world.models.values():
        if not model.waiting:
            continue
        if world.allows(model.name):
            world.refresh_turn(model, now)
        else:
            refuse_all(world, model, _not_allowed(world, model), now)


def _refusal(world: World, model: Model, event: RequestArrived, now: Seconds) -> RequestError | None:
    standing = _standing_refusal(world, model, now)
    if standing is not None:
        return standing
    if not event.may_wake:
        return None if isinstance(model.state, Serving) and model.has_room else ModelNotLoaded(model.name)
    if is_open(world, model):
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


def _enqueue(world: World, model: Model, request: int, waiting: Waiting) -> None:
    model.waiting[request] = waiting
    world.queued_requests += 1
    world.queued_bytes += waiting.size_bytes
    world.watch_deadline(request, model)


def _move_before_the_younger(model: Model, request: int) -> None:
    arrived_at = model.waiting[request].arrived_at
    older = [other for other, _ in takewhile(lambda entry: entry[1].arrived_at < arrived_at, model.waiting.items())]
    for other in (request, *reversed(older)):
        model.waiting.move_to_end(other, last=False)


def _dequeue(world: World, model: Model, request: int) -> None:
    waiting = model.waiting.pop(request)
    world.queued_requests -= 1
    world.queued_bytes -= waiting.size_bytes
