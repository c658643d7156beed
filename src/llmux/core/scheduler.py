"""The scheduler: the one place where events become actions.

``handle`` takes every event. ``admit``, ``first_token`` and ``done`` are O(1) and decide nothing: they are what a
request costs while its model serves and nothing else is to be decided. Only these four change scheduling state.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from llmux.core import admission, commands, lifecycle, shutdown, switching
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
from llmux.core.identifiers import ALL_OF_IT, EVERY_GPU, GpuId, InstanceId, Seconds
from llmux.core.model import Model, Transition
from llmux.core.policies.base import Policy
from llmux.core.request import Request
from llmux.core.settings import Limits, ModelSpec
from llmux.core.states import Draining, Evicting, Manual, Mode, Serving, State, Stuck, Waking
from llmux.core.world import World


class Scheduler:
    """Decides which model is on the GPU and which requests are served. Synchronous, and never re-entered.

    Each entry point is given the time, which must not go back.
    """

    def __init__(
        self,
        specs: Iterable[ModelSpec],
        policy: Policy,
        limits: Limits | None = None,
        capacity: Mapping[GpuId, int] = ALL_OF_IT,
    ) -> None:
        self._world = World(specs, limits or Limits(), policy, capacity)
        self._clock = self._world.clock
        self._timer: Seconds | None = None
        """When the timer that was last asked for fires; None when it has fired."""

    def admit(self, request: Request, now: Seconds) -> InstanceId | None:
        """Admit a request that would not have to wait; None means: send ``RequestArrived`` instead."""
        model = self._world.models[request.model]
        if not admission.is_open(self._world, model):
            return None
        self._clock.now = request.arrived_at = now
        model.begin(request)
        model.estimates.arrivals += 1
        return model.instance

    def first_token(self, request: Request, now: Seconds) -> None:
        """Note that a streamed answer begins. Policies see how many requests still wait for that."""
        self._clock.now = now
        self._world.models[request.model].first_token(request)

    def done(self, request: Request, completed: bool, now: Seconds) -> bool:
        """End a request when nothing can be decided because of that; False means: send ``RequestDone`` instead.

        While the model serves: nothing is queued that could take the place, and neither another model waits for it to
        be idle nor does it leave when it has been. While it drains: others are in flight, and nothing else is due.
        """
        world = self._world
        model = world.models[request.model]
        self._clock.now = now
        if type(model.state) is Serving:
            may_leave = len(world.candidates) or model.spec.idle_seconds != math.inf
            waits_for_idleness = len(model.in_flight) <= 1 and may_leave
            if model.queue.size or world.stopping_until is not None or waits_for_idleness:
                return False
        elif type(model.state) is not Draining or len(model.in_flight) <= 1 or not self._nothing_to_decide():
            return False
        admission.finish(world, request, completed=completed)
        return True

    def handle(self, event: Event, now: Seconds) -> list[Action]:
        """Apply one event, then do whatever has become due. The actions are to be performed in order."""
        world = self._world
        self._clock.now = now
        world.event_name = type(event).__name__
        self._apply(event)
        if type(event) is RequestArrived and self._nothing_to_decide():
            self._set_timer(math.inf)
        else:
            self._settle()
        actions, world.actions = world.actions, []
        return actions

    def _nothing_to_decide(self) -> bool:
        """Whether nothing is due, and nothing can be decided until the one switch gets further.

        Only a saving, since settling would find the same: a fifth of a simulated run in which two models take turns.
        """
        if self._world.commands or (self._timer is not None and self._timer <= self._clock.now):
            return False
        return switching.occupies_every_gpu(self._world)

    def _apply(self, event: Event) -> None:  # noqa: C901 - a dispatch table
        world = self._world
        match event:
            case RequestArrived(request):
                admission.arrive(world, request)
            case RequestGone(request):
                admission.leave(world, request)
            case RequestDone(request, completed):
                admission.finish(world, request, completed=completed)
                admission.admit_waiting(world, world.models[request.model])
            case TimerFired():
                self._timer = None
            case RequestReturned(request, reason):
                admission.come_back(world, request, reason)
            case WakeDone(instance, error):
                model = world.models[instance.model]
                if instance == model.instance and isinstance(model.state, Waking):
                    failed = switching.finish_wake(world, model, event)
                    if failed and error is not None:
                        commands.fail_switches(world, model, str(error))
            case EvictDone(instance, _, error):
                model = world.models[instance.model]
                if instance == model.instance and isinstance(model.state, Evicting):
                    eviction = model.state.eviction
                    lifecycle.evict_done(world, model, event)
                    commands.end_sleep(world, model, eviction, error)
            case InstanceExited(instance):
                lifecycle.instance_exited(world, world.models[instance.model], event)
            case ModeChanged():
                commands.change_mode(world, event)
            case SwitchRequested():
                commands.request_switch(world, event)
            case WakeRequested():
                commands.request_wake(world, event)
            case SleepRequested():
                commands.request_sleep(world, event)
            case EvictionChanged(name, eviction):
                commands.change_eviction(world.models[name], eviction)
            case ShutdownRequested():
                shutdown.begin_shutdown(world, event)
            case _:
                assert_never(event)

    def _settle(self) -> None:
        """Look at what is, and do what is due. Level-triggered: it does not matter which event led here.

        1. End requests that have waited too long: nothing below is done for their sake.
        2. End back-offs that are over, so that failed models are candidates in step 5.
        3. Call off switches that are no longer wanted, which may bring victims back to serving,
        4. perform the operator's commands, which go before any policy,
        5. and only then decide on new switches, with the GPUs that 3 and 4 left.
        6. Evict what has drained, or whose drain ends now: after 5, because a switch that was just started may find its
           victims idle, and before 7, because a switch waits for its victims.
        7. Take every switch as far as it can go.
        8. Have models leave that have been idle for long enough: after 5, in which they may have become victims.
        9. Set the timer for whatever comes next.

        During shutdown there are no switches and no commands: frozen requests resume as far as time and memory allow,
        and every engine is brought nearer to its end.
        """
        world = self._world
        admission.expire(world)  # 1
        if world.backing_off:
            self._end_backoffs()  # 2
        decide_again_at = math.inf
        if world.stopping_until is not None:
            shutdown.advance_shutdown(world, world.stopping_until)
            self._finish_drains()
            if world.frozen_requests:
                decide_again_at = world.stopping_until
            if world.has_no_engines and not world.shutdown_reported:
                world.shutdown_reported = True
                world.backing_off.clear()
                world.emit(ShutdownDone())
        else:
            if world.switches:
                switching.call_off_unwanted(world)  # 3
            if world.commands:
                commands.advance_commands(world)  # 4
            if world.commands or len(world.candidates):
                decide_again_at = switching.decide(world)  # 5
            elif world.switch_wanted_at:
                world.switch_wanted_at = {}
            if world.draining:
                self._finish_drains()  # 6
            for switch in world.switches.values():
                decide_again_at = min(decide_again_at, switching.advance(world, switch))  # 7
            decide_again_at = min(decide_again_at, self._end_idleness())  # 8
        self._set_timer(decide_again_at)  # 9

    def _end_backoffs(self) -> None:
        world, now = self._world, self._clock.now
        for model in [model for model in world.backing_off.values() if _retry_at(model) <= now]:
            del world.backing_off[model.name]
            if isinstance(model.state, Stuck):
                lifecycle.begin_evict(world, model, STOP)
            else:
                world.update_candidate(model)

    def _end_idleness(self) -> Seconds:
        """Evict what has been idle for its ``idle_seconds``; returns when the next model will have been.

        A model that the mode holds on the GPU stays: it alone is served, and would have to come back.
        """
        world, next_at = self._world, math.inf
        for model in list(world.on_gpu.values()):
            leaves_at = model.leaves_at
            if isinstance(model.state, Serving):
                leaves_at = max(leaves_at, model.state.since + world.limits.min_active_seconds)
            if leaves_at == math.inf or not model.spec.frees_memory(model.eviction) or _is_held(world, model):
                continue
            if leaves_at <= self._clock.now:
                lifecycle.begin_evict(world, model, model.eviction)
            else:
                next_at = min(next_at, leaves_at)
        return next_at

    def _finish_drains(self) -> None:
        # In the order of their wakes. A model that begins to leave is still on the GPU, so the index keeps its size.
        for model in self._world.on_gpu.values():
            if isinstance(model.state, Draining):
                lifecycle.finish_drain(self._world, model)

    def _set_timer(self, decide_again_at: Seconds) -> None:
        world = self._world
        earliest = min(decide_again_at, world.deadlines.earliest(before=decide_again_at))
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
        switches = self._world.switches.values()
        # What needs no GPU comes beside the switch that is worth telling.
        switch = min(switches, key=lambda switch: not self.model(switch.target).spec.uses_gpu, default=None)
        return None if switch is None else (switch.victims[0] if switch.victims else "", switch.target)

    @property
    def places_by_memory(self) -> bool:
        """Whether the GPUs have sizes; otherwise a model takes all of all of them."""
        return EVERY_GPU not in self._world.capacity

    def gpu_memory(self) -> Mapping[GpuId, tuple[int, int]]:
        """Of each GPU, its memory and what no model holds of it, in MiB."""
        return {gpu: (total, self._world.free[gpu]) for gpu, total in self._world.capacity.items()}

    def active_model(self) -> str | None:
        """The model on its way in, else the one woken last, else none."""
        return commands.active_model(self._world)

    @property
    def is_stopping(self) -> bool:
        """Whether shutdown has been asked for."""
        return self._world.stopping_until is not None

    def wait_bound(self, longest_switch_seconds: Seconds, model: str | None = None) -> Seconds:
        """The longest time that a queue's head waits for its switch to begin, if no wake fails: one model's, or any's.

        ``max_wait + S + (N - 1) * (max(max(min_active, Q) + drain_timeout, S) + S)``, with N models, S the longest
        switch and Q the policy's longest quantum: the head is overdue after max_wait; a switch may just have begun; and
        each other model may be switched to once before it, and stays for its quantum and its drain or, where its
        requests freeze, for as long as its wake took.
        """
        world = self._world
        max_wait = max(record.max_wait_seconds for record in self.models if model in (None, record.name))
        stay = max(world.limits.min_active_seconds, world.policy.quantum_max_seconds(longest_switch_seconds))
        residence = max(stay + world.limits.drain_timeout_seconds, longest_switch_seconds)
        others = len(world.models) - 1
        return max_wait + longest_switch_seconds + others * (residence + longest_switch_seconds)


def _is_held(world: World, model: Model) -> bool:
    """Whether the operator keeps the model on the GPU."""
    return isinstance(world.mode, Manual) and world.mode.allowed == model.name


def _retry_at(model: Model) -> Seconds:
    """When a failed or stuck model is tried again."""
    retry_at: Seconds = getattr(model.state, "retry_at", float("-inf"))
    return retry_at
