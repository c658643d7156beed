"""Requests: into the queue, to the engine, back again, or away."""

from llmux.core.actions import Admit, Freeze, Reject, Revoke, Thaw
from llmux.core.model import Model
from llmux.core.request import Request
from llmux.core.states import Auto, Failed, Manual, Serving
from llmux.core.world import World
from llmux.errors import (
    EngineDied,
    EngineUnavailable,
    FailureReason,
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
        and not model.queue.size
        and len(model.in_flight) < model.spec.max_in_flight
        and world.stopping_until is None
        # Mostly nothing is disallowed, and this is on the path of every request: it does without the call.
        and ((type(world.mode) is Auto and not world.rules.shut_out) or world.allows(model.name))
    )


def arrive(world: World, request: Request) -> None:
    """A new request is admitted, queued or refused. The first case that applies decides:

    1. llmux is shutting down                                 refused: ShuttingDown
    2. the mode serves another model only, or one that        refused: ModelNotAllowed
       stays on the GPUs leaves no room for it
    3. the model failed, refuses, and backs off               refused: EngineUnavailable
    4. it serves, nothing is queued, and a place is free      admitted
    5. the request may not wake a model                       refused: ModelNotLoaded
    6. the queues are full, in requests or in bytes           refused: QueueFull
    7. anything else                                          queued
    """
    model = world.models[request.model]
    request.arrived_at = request.waiting_since = world.clock.now
    refusal = _standing_refusal(world, model)  # 1, 2, 3
    opened = is_open(world, model)
    if refusal is None and not opened:
        refusal = _no_place(world, model, request)  # 5, 6
    if refusal is not None:
        if isinstance(refusal, QueueFull):
            model.estimates.turned_away += 1
        world.emit(Reject(request, refusal))
        return
    model.estimates.arrivals += 1
    if opened:  # 4
        _admit(world, model, request)
    else:  # 7
        world.enqueue(model, request)
        if len(model.queue) == 1:  # otherwise the head is the same, and so is the candidate's deadline
            world.update_candidate(model)


def come_back(world: World, request: Request, reason: FailureReason) -> None:
    """A request that lost its engine is queued by its arrival, or refused after ``attempts_max`` attempts.

    One that may not wake a model gets no second attempt, since that could mean a start.
    """
    model = world.models[request.model]
    finish(world, model, request, completed=False)
    refusal = _standing_refusal(world, model)
    if request.attempts >= world.limits.attempts_max or not request.may_wake:
        refusal = EngineDied(model.name, reason)
    if refusal is not None:
        world.emit(Reject(request, refusal))
    else:
        world.enqueue(model, request, returned=True)
        world.update_candidate(model)
    admit_waiting(world, model)


def admit_waiting(world: World, model: Model) -> None:
    """Admit queued requests while the model serves and has a free place."""
    if not isinstance(model.state, Serving) or not world.allows(model.name):
        return
    while model.has_free_place and (request := model.queue.next()) is not None:
        world.dequeue(model, request)
        _admit(world, model, request)
    world.update_candidate(model)


def leave(world: World, request: Request) -> None:
    """A waiting client left."""
    model = world.models[request.model]
    if request in model.queue:
        world.dequeue(model, request)
        world.update_candidate(model)


def finish(world: World, model: Model, request: Request, completed: bool) -> None:
    """An admitted request, perhaps frozen, has ended. An end that the core caused itself is ignored."""
    if request in model.in_flight:
        model.end(request)
    elif request in model.frozen:
        _unfreeze(world, model, request)
    else:
        return
    if completed:
        model.last_completed_at = world.clock.now
        model.failures = 0


def expire(world: World) -> None:
    """End the requests that have waited too long."""
    now = world.clock.now
    while (request := world.deadlines.expired(now)) is not None:
        model = world.models[request.model]
        if request in model.frozen:
            _unfreeze(world, model, request)
            world.emit(Revoke(request, QueueTimeout(model.name, now - request.waiting_since)))
        elif model.start_progress is not None and not world.limits.request_timeout_covers_starts:
            world.extend_wait(request)
        else:
            refuse(world, model, request, QueueTimeout(model.name, now - request.arrived_at, model.start_progress))


def refuse(world: World, model: Model, request: Request, error: RequestError) -> None:
    """End one queued request with an error."""
    world.dequeue(model, request)
    world.emit(Reject(request, error))
    world.update_candidate(model)


def refuse_all(world: World, model: Model, error: RequestError) -> None:
    """End everything queued for a model with an error."""
    for request in model.queue.by_arrival():
        refuse(world, model, request, error)


def refuse_disallowed(world: World) -> None:
    """After a change of the mode: end what is queued for models that it does not serve. Frozen requests stay."""
    for model in world.models.values():
        if model.head_since is None:
            continue
        if not world.allows(model.name):
            refuse_all(world, model, not_allowed(world, model))
        world.update_candidate(model)


def revoke_all(world: World, model: Model, error: RequestError) -> None:
    """Take back every lease of a model; afterwards nothing of it is in flight."""
    for request in _by_id(model.in_flight):
        world.emit(Revoke(request, error))
    model.awaiting_first_token -= model.in_flight
    model.in_flight.clear()
    model.idle_since = world.clock.now


def freeze_all(world: World, model: Model) -> None:
    """Suspend what is in flight: it waits with its engine."""
    for request in _by_id(model.in_flight):
        world.freeze(model, request)
        world.emit(Freeze(request))
    model.idle_since = world.clock.now


def thaw_all(world: World, model: Model) -> None:
    """Let frozen requests resume; they are in flight again, before anything that is queued."""
    if model.frozen:
        model.estimates.paused(world.clock.now - next(iter(model.frozen)).waiting_since)
    for request in list(model.frozen):
        world.unfreeze(model, request)
        model.in_flight.add(request)
        if request.keep_alive_seconds is not None:
            model.keep_alive_seconds = request.keep_alive_seconds
        world.emit(Thaw(request))


def lose_frozen(world: World, model: Model, error: RequestError) -> None:
    """Take back the leases of requests whose engine was lost while they were suspended in it."""
    for request in list(model.frozen):
        _unfreeze(world, model, request)
        world.emit(Revoke(request, error))


def _admit(world: World, model: Model, request: Request) -> None:
    model.begin(request)
    request.queue_seconds = world.clock.now - request.arrived_at
    waited_for_switch = model.last_switch_ended_at >= request.waiting_since
    request.switch_seconds = model.last_switch_seconds if waited_for_switch else None
    world.emit(Admit(request, model.instance))


def _standing_refusal(world: World, model: Model) -> RequestError | None:
    """Why every request for the model is refused at present; None if none is."""
    if world.stopping_until is not None:
        return ShuttingDown()
    if not world.allows(model.name):
        return not_allowed(world, model)
    state, now = model.state, world.clock.now
    if isinstance(state, Failed) and state.refusing and now < state.retry_at:
        return EngineUnavailable(model.name, state.reason, state.retry_at - now)
    return None


def _no_place(world: World, model: Model, request: Request) -> RequestError | None:
    """Why a request that cannot be admitted now may not wait either; None if it may."""
    limits = world.limits
    if not request.may_wake:
        return ModelNotLoaded(model.name, model.start_progress)
    if world.queued_requests >= limits.queue_limit_requests:
        return QueueFull(f"queue_limit_requests {limits.queue_limit_requests}")
    if world.queued_bytes + request.size_bytes > limits.queue_limit_bytes:
        return QueueFull(f"queue_limit_bytes {limits.queue_limit_bytes}")
    return None


def not_allowed(world: World, model: Model) -> ModelNotAllowed:
    """Why the mode, or a model that stays on the GPUs, keeps a model from being served."""
    if isinstance(world.mode, Manual) and world.mode.allowed != model.name:
        return ModelNotAllowed(model.name, world.mode.allowed)
    return ModelNotAllowed(model.name, world.rules.shut_out.get(model.name), stays=True)


def _unfreeze(world: World, model: Model, request: Request) -> None:
    """A frozen request ends without resuming."""
    world.unfreeze(model, request)
    model.awaiting_first_token.discard(request)
    world.update_candidate(model)


def _by_id(requests: set[Request]) -> list[Request]:
    """A set has no order of its own; actions are to come out in the same one in every run."""
    return sorted(requests, key=lambda request: request.id)
