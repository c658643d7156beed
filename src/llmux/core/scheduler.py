"""The scheduler: the one place where events become actions.

``handle`` takes everything; ``admit`` and ``done`` are its O(1) short cuts for a serving model with nobody waiting, and
``done`` for one that drains while nothing else can be decided.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from llmux.core import admission, commands, lifecycle, switching
from llmux.core.actions import Action, SetTimer, ShutdownDone
from llmux.core.events import (
    Event,
    EvictDone,
    EvictionChanged,
    InstanceExited,
    ModeChanged,
    RequestArrived,
    RequestDone,
    RequestGone,
    RequestReturned,
    ShutdownRequested,
    SleepRequested,
    SwitchRequested,
    TimerFired,
    WakeDone,
    WakeRequested,
)
from llmux.core.eviction import STOP
from llmux.core.identifiers import ALL_OF_IT, GpuId, InstanceId, Seconds
from llmux.core.model import Model, Transition
from llmux.core.policies.base import Policy
from llmux.core.settings import Limits, ModelSpec
from llmux.core.states import Draining, Evicting, Mode, Serving, State, Stuck, Waking
from llmux.core.world import World


class Scheduler:
    """Decides which model is on the GPU and who is served. Synchronous; never re-entered; times never go back."""

    def __init__(
        self,
        specs: Iterable[ModelSpec],
        policy: Policy,
        limits: Limits | None = None,
        capacity: Mapping[GpuId, int] = ALL_OF_IT,
    ) -> None:
        self._world = World(specs, limits or Limits(), policy, capacity)
        self._timer: Seconds | None = None

    def admit(self, request: int, name: str, now: Seconds, *, streams: bool = True) -> InstanceId | None:
        """Admit a request that would not have to wait; None means: send ``RequestArrived`` instead."""
        model = self._world.models[name]
        if not admission.is_open(self._world, model):
            return None
        model.begin(request, streams=streams, now=now)
        model.traffic.arrived += 1
        return model.instance

    def answered(self, request: int, name: str, now: Seconds) -> None:
        """Tell that a request's answer begins: its first token is out. Policies look at who still waits for that."""
        self._world.models[name].answer(request, now)

    def done(self, request: int, name: str, completed: bool, now: Seconds) -> bool:
        """End a request that nobody waits behind; False means: send ``RequestDone`` instead."""
        world = self._world
        model = world.models[name]
        if type(model.state) is Serving:
            if model.waiting or world.stopping_until is not None or (len(model.in_flight) <= 1 and len(world.turns)):
                return False
        elif type(model.state) is not Draining or len(model.in_flight) <= 1 or not self._only_waits(now):
            return False
        admission.finish(world, model, request, completed, now)
        return True

    def handle(self, event: Event, now: Seconds) -> list[Action]:
        """Apply one event, then do whatever has become due. The actions are to be performed in order."""
        self._world.event_name = type(event).__name__
        self._apply(event, now)
        if type(event) is RequestArrived and self._only_waits(now):
            self._set_timer(math.inf)
        else:
            self._settle(now)
        actions, self._world.actions = self._world.actions, []
        return actions

    def _only_waits(self, now: Seconds) -> bool:
        """Whether nothing is due, and nothing can be decided until the models of the one switch have left or come."""
        if self._world.commands or (self._timer is not None and self._timer <= now):
            return False
        claim = switching.claim_of_all(self._world)
        return claim is not None and switching.is_under_way(self._world, claim)

    def _apply(self, event: Event, now: Seconds) -> None:
        world = self._world
        match event:
            case RequestArrived():
                admission.arrive(world, event, now)
            case RequestGone(request, name):
                admission.leave(world, world.models[name], request, now)
            case RequestDone(request, name, completed):
                admission.finish(world, world.models[name], request, completed, now)
                admission.admit_waiting(world, world.models[name], now)
            case TimerFired():
                self._timer = None
            case RequestReturned():
                admission.come_back(world, event, now)
            case WakeDone(instance, error):
                model = world.models[instance.model]
                if instance == model.instance and isinstance(model.state, Waking):
                    lifecycle.wake_done(world, model, event, now)
                    if error is not None and model.name not in world.claims:
                        commands.fail_switches(world, model, error, now)
            case EvictDone(instance, _, error):
                model = world.models[instance.model]
                if instance == model.instance and isinstance(model.state, Evicting):
                    eviction = model.state.eviction
                    lifecycle.evict_done(world, model, event, now)
                    commands.end_sleep(world, model, eviction, error, now)
            case InstanceExited(instance):
                lifecycle.instance_exited(world, world.models[instance.model], event, now)
            case ModeChanged():
                commands.change_mode(world, event, now)
            case SwitchRequested():
                commands.request_switch(world, event, now)
            case WakeRequested():
                commands.request_wake(world, event)
            case SleepRequested():
                commands.request_sleep(world, event)
            case EvictionChanged(name, eviction):
                commands.change_eviction(world.models[name], eviction)
            case ShutdownRequested():
                commands.begin_shutdown(world, event, now)
            case _:
                assert_never(event)

    def _settle(self, now: Seconds) -> None:
        """Level-triggered: look at what is, and do what should be. Each step is idempotent."""
        world = self._world
        admission.expire(world, now)
        if world.backing_off:
            self._retry_failures(now)
        look_again_at = math.inf
        if world.stopping_until is not None:
            commands.advance_shutdown(world, now)
            self._finish_drains(now)
            if world.is_empty_of_engines and not world.shutdown_reported:
                world.shutdown_reported = True
                world.backing_off.clear()
                world.emit(ShutdownDone())
        else:
            if world.claims:
                switching.call_off_unwanted(world, now)
            if world.commands:
                commands.advance_commands(world, now)
            if world.commands or len(world.turns):
                look_again_at = switching.decide(world, now)
            elif world.wanted_at:
                world.wanted_at = {}
            if world.draining:
                self._finish_drains(now)
            for claim in world.claims.values():
                look_again_at = min(look_again_at, switching.advance(world, claim, now))
        self._set_timer(look_again_at)

    def _retry_failures(self, now: Seconds) -> None:
        world = self._world
        for model in [model for model in world.backing_off.values() if _retry_at(model) <= now]:
            del world.backing_off[model.name]
            if isinstance(model.state, Stuck):
                lifecycle.begin_evict(world, model, STOP, now)
            else:
                world.refresh_turn(model, now)

    def _finish_drains(self, now: Seconds) -> None:
        # In the order of their wakes; what begins to leave is still on the GPU, so that nothing is taken out meanwhile.
        for model in self._world.on_gpu.values():
            if isinstance(model.state, Draining):
                lifecycle.finish_drain(self._world, model, now)

    def _set_timer(self, look_again_at: Seconds) -> None:
        world = self._world
        earliest = min(look_again_at, world.next_deadline(look_again_at))
        for model in world.draining.values():
            assert isinstance(model.state, Draining)
            earliest = min(earliest, model.state.deadline)
        for model in world.backing_off.values():
            earliest = min(earliest, _retry_at(model))
        if earliest != math.inf and earliest != self._timer:
            self._timer = earliest
            world.emit(SetTimer(earliest))

    # Reading back, for status and tests: nothing below changes anything.

    @property
    def mode(self) -> Mode:
        """Automatic or manual."""
        return self._world.mode

    @property
    def models(self) -> Sequence[Model]:
        """The record of every configured model, in the configuration's order; not to be changed."""
        return list(self._world.models.values())

    def model(self, name: str) -> Model:
        """One model's record; not to be changed."""
        return self._world.models[name]

    def state(self, name: str) -> State:
        """One model's state."""
        return self._world.models[name].state

    def history(self, name: str) -> Sequence[Transition]:
        """A model's latest transitions, oldest first."""
        return tuple(self._world.models[name].history)

    def switching(self) -> tuple[str, str] | None:
        """From which model to which a switch is under way; the first is empty when nothing has to leave."""
        for claim in self._world.claims.values():
            return (claim.victims[0] if claim.victims else "", claim.target)
        return None

    def active_model(self) -> str | None:
        """The model on its way in, else the one woken last, else none."""
        return commands.active_model(self._world)

    @property
    def is_stopping(self) -> bool:
        """Whether the end has been asked for."""
        return self._world.stopping_until is not None

    def wait_bound(self, longest_switch_seconds: Seconds, model: str | None = None) -> Seconds:
        """The longest time that a queue's head waits for its switch to begin, if no wake fails: one model's, or any's.

        ``max_wait + S + (N−1)(max(max(min_active, Q) + drain_timeout, S) + S)``: it is overdue after max_wait; a switch
        may just have begun; and each other model may have one turn before it, of which the policy keeps Q at most, and
        which lasts as long as its drain or, where its requests freeze, as its wake.
        """
        world = self._world
        patience = max(record.max_wait_seconds for record in self.models if model in (None, record.name))
        stay = max(world.limits.min_active_seconds, world.policy.quantum_max_seconds(longest_switch_seconds))
        turn = max(stay + world.limits.drain_timeout_seconds, longest_switch_seconds)
        others = len(world.models) - 1
        return patience + longest_switch_seconds + others * (turn + longest_switch_seconds)


def _retry_at(model: Model) -> Seconds:
    """When a failed or stuck model is tried again."""
    retry_at: Seconds = getattr(model.state, "retry_at", float("-inf"))
    return retry_at
