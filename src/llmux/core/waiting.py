"""Why requests wait: read from the world when somebody asks, so that it costs nothing while nobody does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias, assert_never

from llmux.core.identifiers import Seconds
from llmux.core.leasing import lease_in_the_way
from llmux.core.model import Model
from llmux.core.policy_view import CANDIDATES_MAX
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Manual, Serving, Stuck, Waking
from llmux.core.switch import Switch
from llmux.core.vacating import Room
from llmux.core.world import SwitchCommand, World
from llmux.errors import FailureReason

_ON_THE_MOVE = (Waking, Draining, Evicting, Stuck)


@dataclass(frozen=True, slots=True)
class ForSlot:
    """Its engine serves, and has as many requests as it may get."""

    in_flight: int


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """It is on its way onto the GPU. ``left_seconds`` is None where no earlier one tells, or where it is overtime."""

    elapsed_seconds: Seconds
    left_seconds: Seconds | None
    from_cold: bool


@dataclass(frozen=True, slots=True)
class Leaving:
    """It is itself on its way off the GPU, and comes back after that. ``target``: for whom it leaves, if for anyone."""

    target: str | None


@dataclass(frozen=True, slots=True)
class ForDrain:
    """Its switch has begun, and these models let their requests in flight end."""

    models: tuple[str, ...]
    in_flight: int
    left_seconds_max: Seconds
    """Until the last deadline of these drains."""


@dataclass(frozen=True, slots=True)
class ForMemory:
    """These models still have memory of GPUs that it needs; most are on the move, or stuck."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForGpuLease:
    """It can come nowhere before a GPU lease ends, and nobody knows when that is."""

    lease: str


@dataclass(frozen=True, slots=True)
class ForTurn:
    """The policy lets these models stay for now."""

    models: tuple[str, ...]
    overdue_in_seconds: Seconds
    """Negative once it is overdue: then they are in their minimum time, or in the policy's quantum."""


@dataclass(frozen=True, slots=True)
class Behind:
    """Another model goes first: the operator wants it, its switch is under way, or its requests are older."""

    model: str


@dataclass(frozen=True, slots=True)
class BackingOff:
    """Its engine failed, or could not be brought off the GPU; it is tried again then."""

    retry_in_seconds: Seconds
    reason: FailureReason


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """The operator has another model served, or none; requests that were frozen with their engine stay."""

    allowed: str | None


WaitReason: TypeAlias = (
    ForSlot | OnItsWay | Leaving | ForDrain | ForMemory | ForGpuLease | ForTurn | Behind | BackingOff | NotAllowed
)


def wait_reasons(world: World, now: Seconds) -> dict[str, WaitReason]:
    """Of each model for which requests wait, what they wait for. Changes nothing.

    All of them together, because a model's place among the candidates is part of the answer. A policy chooses among the
    first ``CANDIDATES_MAX`` candidates, so that each later one is behind the first: that bounds the work.
    """
    ahead = _first_of_all(world)
    chosen_among = set(islice(world.candidates, CANDIDATES_MAX))
    first = world.candidates.first()
    reasons: dict[str, WaitReason] = {}
    for model in world.models.values():
        if not model.is_asked_for:
            continue
        reason = _of_its_own(world, model, now)
        if reason is None and ahead is not None and ahead != model.name:
            reason = Behind(ahead)
        if reason is None and first is not None and model.name not in chosen_among:
            reason = Behind(first[0])
        reasons[model.name] = _before_its_switch(world, model, now) if reason is None else reason
    return reasons


def leaving_for(world: World, model: str) -> str | None:
    """The target of the switch for which a model leaves, or has left; None if there is none."""
    return next((one.target for one in world.switches.values() if model in one.victims), None)


def _first_of_all(world: World) -> str | None:
    """The model that the operator waits for."""
    command = next(iter(world.commands.values()), None)
    return command.model if isinstance(command, SwitchCommand) else None


def _of_its_own(world: World, model: Model, now: Seconds) -> WaitReason | None:
    """What the model's state and its switch say; None for a candidate without a switch."""
    if isinstance(world.mode, Manual) and not world.allows(model.name):
        return NotAllowed(world.mode.allowed)
    match model.state:
        case Serving():
            return ForSlot(len(model.in_flight))
        case Waking(since=since, asleep=asleep):
            expected = model.start_seconds if asleep is None else model.wake_seconds
            left = (expected or 0.0) - (now - since)
            return OnItsWay(now - since, left if left > 0 else None, asleep is None)
        case Draining() | Evicting():
            return Leaving(leaving_for(world, model.name))
        case Stuck(reason=reason, retry_at=retry_at):
            return BackingOff(max(0.0, retry_at - now), reason)
        case Failed(reason=reason, retry_at=retry_at) if retry_at > now:
            return BackingOff(retry_at - now, reason)
        case Failed() | Cold() | Asleep():
            switch = world.switches.get(model.name)
            return None if switch is None else _in_its_switch(world, model, switch, now)
        case _:
            assert_never(model.state)


def _for_those(models: Iterable[Model], now: Seconds) -> ForDrain | ForMemory:
    """Waiting for models that are leaving: the drains first, because they come first."""
    leaving = list(models)
    # One that has drained and has not left yet waits for host memory.
    draining = [(one, one.state) for one in leaving if isinstance(one.state, Draining) and one.in_flight]
    if not draining:
        return ForMemory(tuple(model.name for model in leaving))
    return ForDrain(
        tuple(model.name for model, _ in draining),
        sum(len(model.in_flight) for model, _ in draining),
        max(state.deadline for _, state in draining) - now,
    )


def _in_its_switch(world: World, model: Model, switch: Switch, now: Seconds) -> WaitReason:
    """Of the target of a switch whose wake has not begun: its victims, else whoever else still has the memory."""
    victims = [one for one in map(world.models.__getitem__, switch.victims) if isinstance(one.state, _ON_THE_MOVE)]
    near = [one for one in world.on_gpu.values() if one is not model and _in_the_way(world, model, one)]
    moving = [one for one in near if isinstance(one.state, _ON_THE_MOVE)]
    if held_by := victims or moving or near:
        return _for_those(held_by, now)
    return Behind(next(iter(world.switches)))


def _before_its_switch(world: World, model: Model, now: Seconds) -> WaitReason:
    """Of a candidate to which no switch has begun."""
    lease = lease_in_the_way(world, model)
    if lease is not None:
        return ForGpuLease(lease.name)
    for name in _older_and_overdue(world, model, now):
        return Behind(name)
    room = Room(world)
    found = room.best_open(model)
    others = [one.target for one in world.switches.values() if _in_the_way(world, model, world.models[one.target])]
    if others and (found is None or not found.plan.victims):
        return Behind(others[0])
    if found is None or not (found.plan.victims or room.fits_now(model, found.placement)):
        near = [one for one in world.on_gpu.values() if _in_the_way(world, model, one)]
        # Nothing moves where its engine sleeps beside one that stays, and is to be started elsewhere.
        moving = [one for one in near if isinstance(one.state, _ON_THE_MOVE)]
        return _for_those(moving or near, now)
    return ForTurn(found.plan.victims, world.candidates.overdue_at(model.name) - now)


def _older_and_overdue(world: World, model: Model, now: Seconds) -> Iterator[str]:
    """The candidates before the model that are overdue and may need GPUs that it needs too."""
    for name in world.candidates:
        if name == model.name or not world.candidates.is_overdue(name, now):
            return
        if not world.models[name].possible_gpus.isdisjoint(model.possible_gpus):
            yield name


def _in_the_way(world: World, model: Model, other: Model) -> bool:
    """Whether the other one is on a GPU on which the model may be, or may not be on any beside it."""
    return not model.possible_gpus.isdisjoint(other.awake) or other.name in world.rules.rivals(model.name)
