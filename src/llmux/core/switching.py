"""Switches: deciding on one, making room, waking the target, calling one off."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import Footprint, GpuId, Seconds
from llmux.core.lifecycle import (
    begin_drain,
    begin_evict,
    begin_freeze,
    begin_wake,
    finish_drain,
    freezes,
    stop_draining,
)
from llmux.core.model import Model
from llmux.core.placement import Holder, fits, give, take, victims
from llmux.core.policies.base import Bring, Candidate, Demand, Incumbent
from llmux.core.states import Asleep, Draining, Evicting, Serving
from llmux.core.world import Claim, SleepCommand, SwitchCommand, World

_LEAVING = frozenset((Draining, Evicting))

CANDIDATES_MAX = 8
"""How many of the models whose turn is next a policy chooses among, so that a decision's cost has a bound."""


class Plan(NamedTuple):
    """How room is made for a model: who leaves, and whether by stopping, because asleep they would hold too much."""

    victims: tuple[str, ...]
    stop_victims: bool = False


def plan(world: World, model: Model) -> Plan | None:
    """How room could be made for a model now; None while what is in its way is itself on the move."""
    free = _unreserved(world, model)
    gentle = victims(model.spec.awake, free, _holders(world, model, stop_victims=False))
    if gentle is not None:
        return Plan(gentle)
    harsh = victims(model.spec.awake, free, _holders(world, model, stop_victims=True))
    return None if harsh is None else Plan(harsh, stop_victims=True)


def _unreserved(world: World, model: Model) -> dict[GpuId, int]:
    """Memory that is neither held by another model nor reserved by another switch."""
    free = dict(world.free)
    give(free, model.held)
    for claim in world.claims.values():
        if claim.wake_began_at is None and claim.target != model.name:
            take(free, world.models[claim.target].spec.awake)
    return free


def _holders(world: World, model: Model, *, stop_victims: bool) -> Iterator[Holder]:
    """Who could make room for a model, and what each would give back."""
    for other in world.with_residue.values():
        if other is not model and other.name not in world.claims:
            yield Holder(other.name, other.held, (3 if other.frozen else 0, other.last_served_at))
    for other in world.on_gpu.values():
        if isinstance(other.state, Serving) and other is not model:
            eviction = other.eviction
            if eviction.leaves_the_gpu:
                frees = other.spec.awake if stop_victims else _frees(other, eviction)
                yield Holder(other.name, frees, (1 if other.is_idle else 2, other.state.since))


def _frees(model: Model, eviction: Eviction) -> Footprint:
    """What a model on the GPU gives back when it leaves."""
    if not model.spec.asleep:
        return model.spec.awake
    remains = model.spec.residue(eviction)
    return {gpu: size - remains.get(gpu, 0) for gpu, size in model.spec.awake.items()}


@dataclass(slots=True)
class View:
    """What a policy sees: the candidates that do not need a GPU that is spoken for."""

    world: World
    now: Seconds
    reserved_gpus: set[GpuId]
    looked_at: set[str] = field(default_factory=set)
    _same_for_all: dict[int, Sequence[Incumbent]] = field(default_factory=dict)

    def oldest(self) -> Candidate | None:
        """See ``PolicyView``."""
        name = self.next_in_turn()
        return None if name is None else self._candidate(name)

    def candidates(self) -> Iterator[Candidate]:
        """See ``PolicyView``."""
        return map(self._candidate, islice(filter(self.is_free, self.world.turns), CANDIDATES_MAX))

    def next_in_turn(self) -> str | None:
        """The first candidate's name."""
        return next(filter(self.is_free, self.world.turns), None)

    def in_the_way(self, candidate: Candidate) -> Sequence[Incumbent]:
        """See ``PolicyView``."""
        model = self.world.models[candidate.model]
        if model.held:
            return self._incumbents(model)
        # Models that ask for the same memory and hold none of it have the same ones in their way.
        key = id(model.spec.awake)
        incumbents = self._same_for_all.get(key)
        if incumbents is None:
            incumbents = self._same_for_all[key] = self._incumbents(model)
        return incumbents

    def _incumbents(self, model: Model) -> Sequence[Incumbent]:
        made = plan(self.world, model)
        if made is None:
            return ()
        models = self.world.models
        return [self.incumbent(models[name]) for name in made.victims if isinstance(models[name].state, Serving)]

    def cost(self, leaving: str, coming: str) -> Seconds:
        """See ``PolicyView``."""
        return self.world.costs.direction(leaving, coming)

    def known_cost(self, leaving: str, coming: str) -> Seconds | None:
        """See ``PolicyView``."""
        return self.world.costs.known(leaving, coming)

    def is_free(self, name: str) -> bool:
        """Whether no switch has been found for any of the GPUs that the model needs."""
        if name in self.looked_at or name in self.world.claims:
            return False
        return not self.reserved_gpus or self.reserved_gpus.isdisjoint(self.world.models[name].spec.awake)

    def reserve(self, model: Model) -> None:
        """From here on neither the model nor another candidate that needs one of its GPUs is considered."""
        self._same_for_all.clear()
        self.looked_at.add(model.name)
        self.reserved_gpus.update(model.spec.awake)

    def _candidate(self, name: str) -> Candidate:
        model = self.world.models[name]
        head_since = model.head_since
        assert head_since is not None
        return Candidate(name, head_since, len(model.waiting) + len(model.frozen), model.spec.weight)

    def incumbent(self, model: Model) -> Incumbent:
        """What a policy is told of a model that serves."""
        assert isinstance(model.state, Serving)
        model.look(self.now)
        traffic = model.traffic
        return Incumbent(
            model.name,
            model.state.since,
            len(model.in_flight),
            len(model.waiting),
            model.idle_since if model.is_idle else None,
            can_freeze=freezes(self.world, model, model.eviction),
            awaiting_first_token=len(model.awaiting_first_token),
            arrivals_per_second=traffic.rate,
            residence_seconds=traffic.residence_seconds,
            prefill_seconds=traffic.prefill_seconds,
            drain_seconds=traffic.drain_seconds,
            demand=self._demand_beside(model),
        )

    def _demand_beside(self, model: Model) -> Demand:
        """What the model asks of its GPUs, with those that share them or wait for them."""
        world, gpus = self.world, model.spec.awake.keys()
        beside = [other for other in world.on_gpu.values() if not gpus.isdisjoint(other.spec.awake)]
        turns = (world.models[name] for name in world.turns)
        waiting = list(islice((other for other in turns if not gpus.isdisjoint(other.spec.awake)), CANDIDATES_MAX))
        load = arrivals = in_service = 0.0
        for other in (*beside, *waiting):
            other.look(self.now)
            traffic = other.traffic
            load += traffic.load
            if traffic.residence_seconds is not None:
                arrivals += traffic.rate
                in_service += traffic.rate * traffic.residence_seconds
        return Demand(load, in_service / arrivals if arrivals else 0.0, len(waiting))


def decide(world: World, now: Seconds) -> Seconds:
    """Start every switch that is due; returns when to look again (infinity: when something happens)."""
    still_wanted: dict[str, Seconds] = {}
    look_again_at = math.inf
    reserved_gpus = _gpus_of_claims(world) if world.claims else set()
    if len(reserved_gpus) >= len(world.capacity):
        world.wanted_at = still_wanted
        return look_again_at
    view = View(world, now, reserved_gpus)
    while len(view.reserved_gpus) < len(world.capacity):
        target, until = _next_target(world, view, now)
        look_again_at = min(look_again_at, until)
        if target is None:
            break
        view.reserve(target)
        made = plan(world, target) if target.can_be_woken(now) else None
        if made is None:
            continue
        ready_at = max(_ready_at(world, made), _turn_ends_at(view, made, target))
        if ready_at > now:
            still_wanted[target.name] = world.wanted_at.get(target.name, now)
            look_again_at = min(look_again_at, ready_at)
            continue
        _start(world, target, made, now)
    world.wanted_at = still_wanted
    return look_again_at


def _gpus_of_claims(world: World) -> set[GpuId]:
    """The GPUs for which a switch has been decided."""
    gpus: set[GpuId] = set()
    for claim in world.claims.values():
        gpus.update(world.models[claim.target].spec.awake)
    return gpus


def _next_target(world: World, view: View, now: Seconds) -> tuple[Model | None, Seconds]:
    """The operator's wish first, then whoever is overdue, then the policy's choice."""
    command = next(iter(world.commands.values())) if world.commands else None
    if isinstance(command, SwitchCommand):
        commanded = world.models[command.model]
        if commanded.can_be_woken(now):
            if view.is_free(commanded.name):
                return commanded, math.inf
            _keep_free(view, commanded)
    first = _next_in_turn(world, view, now)
    if first is None:
        return None, math.inf
    name, overdue_at = first
    if overdue_at <= now:
        return world.models[name], math.inf
    choice = world.policy.choose(view, now)
    if isinstance(choice, Bring):
        return world.models[choice.model], math.inf
    return None, min(choice.until, overdue_at)


def _next_in_turn(world: World, view: View, now: Seconds) -> tuple[str, Seconds] | None:
    """The first candidate, and when it is overdue.

    The GPUs of overdue ones that still wait for another GPU are not given to anybody else.
    """
    first = world.turns.first()
    if first is None or view.is_free(first[0]):
        return first
    for name in world.turns:
        if world.turns.overdue_at(name) > now or view.is_free(name):
            break
        _keep_free(view, world.models[name])
    free = view.next_in_turn()
    return None if free is None else (free, world.turns.overdue_at(free))


def _keep_free(view: View, model: Model) -> None:
    if model.name not in view.world.claims:
        view.reserve(model)


def _ready_at(world: World, made: Plan) -> Seconds:
    ready_at = -math.inf
    for name in made.victims:
        ready_at = max(ready_at, _may_leave_at(world, name))
    return ready_at


def _may_leave_at(world: World, name: str) -> Seconds:
    model = world.models[name]
    if not isinstance(model.state, Serving):
        return -math.inf
    stays = world.limits.min_active_seconds
    if model.in_flight and freezes(world, model, model.eviction):
        # Frozen again any sooner, its requests might be read again and again and never come on.
        stays = max(stays, model.wake_seconds)
    return model.state.since + stays


def _turn_ends_at(view: View, made: Plan, target: Model) -> Seconds:
    """When the policy lets those go that still have work; an operator's command does not ask it."""
    world = view.world
    if world.commands and _is_commanded(world, target):
        return -math.inf
    ends_at = -math.inf
    for name in made.victims:
        model = world.models[name]
        if isinstance(model.state, Serving) and not model.is_idle:
            turn = world.policy.quantum_seconds(view.incumbent(model), target.name, view, view.now)
            ends_at = max(ends_at, model.state.since + turn)
    return ends_at


def _start(world: World, target: Model, made: Plan, now: Seconds) -> None:
    world.claims[target.name] = Claim(
        target.name, made.victims, world.wanted_at.get(target.name, now), now, None if made.victims else now
    )
    _vacate(world, made, now)


def _vacate(world: World, made: Plan, now: Seconds) -> None:
    for name in made.victims:
        model = world.models[name]
        if isinstance(model.state, Asleep):
            begin_evict(world, model, STOP, now)
        else:
            _leave(world, model, STOP if made.stop_victims else model.eviction, now)


def _leave(world: World, model: Model, eviction: Eviction, now: Seconds) -> None:
    if freezes(world, model, eviction):
        begin_freeze(world, model, eviction, now)
    else:
        begin_drain(world, model, eviction, now + world.limits.drain_timeout_seconds, now)
        finish_drain(world, model, now)


def call_off_unwanted(world: World, now: Seconds) -> None:
    """Call off the switches that nobody wants any more and whose wake has not begun."""
    for claim in list(world.claims.values()):
        if claim.wake_began_at is None and not is_wanted(world, world.models[claim.target]):
            _call_off(world, claim, now)


def advance(world: World, claim: Claim, now: Seconds) -> Seconds:
    """Take a switch as far as it can go; returns when to look again (infinity: when something happens)."""
    target = world.models[claim.target]
    if claim.wake_began_at is not None:
        return math.inf
    leaving = [type(world.models[name].state) for name in claim.victims]
    if claim.evict_began_at is None and leaving.count(Draining) < len(leaving):
        claim.evict_began_at = now
    if Draining in leaving or Evicting in leaving:
        return math.inf
    if not target.can_be_woken(now):
        return math.inf
    if fits(target.spec.awake, _unreserved(world, target)):
        claim.wake_began_at = now
        begin_wake(world, target, now)
        return math.inf
    # A victim left in another way than planned and holds too much asleep, or a new one stands in the way.
    made = plan(world, target)
    if made is None:
        return math.inf
    ready_at = _ready_at(world, made)
    if ready_at > now:
        return ready_at
    claim.victims = made.victims
    _vacate(world, made, now)
    return math.inf


def claim_of_all(world: World) -> Claim | None:
    """The one switch that has been decided, if it needs every GPU."""
    if len(world.claims) != 1:
        return None
    claim = next(iter(world.claims.values()))
    return claim if len(world.models[claim.target].spec.awake) >= len(world.capacity) else None


def is_under_way(world: World, claim: Claim) -> bool:
    """Whether the target is being woken, or somebody is leaving for it."""
    return claim.wake_began_at is not None or not _LEAVING.isdisjoint(
        [type(world.models[name].state) for name in claim.victims]
    )


def is_wanted(world: World, model: Model) -> bool:
    """Whether somebody waits for the model: a client that it may serve, or the operator."""
    if model.is_asked_for and world.allows(model.name):
        return True
    return _is_commanded(world, model)


def _is_commanded(world: World, model: Model) -> bool:
    return any(
        isinstance(command, SwitchCommand) and command.model == model.name for command in world.commands.values()
    )


def _call_off(world: World, claim: Claim, now: Seconds) -> None:
    del world.claims[claim.target]
    put_to_sleep = {command.model for command in world.commands.values() if isinstance(command, SleepCommand)}
    for name in claim.victims:
        model = world.models[name]
        if isinstance(model.state, Draining) and name not in put_to_sleep:
            stop_draining(world, model, now)
