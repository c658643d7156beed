"""The scheduler: the one place where events become actions.

``handle`` takes every event. ``admit``, ``first_token`` and ``done`` are O(1) and decide nothing: they are what a
request costs while its model serves and nothing else is to be decided. Only these four change scheduling state.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import assert_never

from llmux.core import (
    admission,
    commands,
    idleness,
    ladder,
    leasing,
    lifecycle,
    memory_pressure,
    shutdown,
    staying,
    switching,
)
from llmux.core.actions import Action, SetTimer, ShutdownDone
from llmux.core.events import (
    DefaultChanged,
    Event,
    EvictDone,
    EvictionChanged,
    GpuLeaseRequested,
    HostMemoryShort,
    InstanceExited,
    MemoryPressure,
    ModeChanged,
    NeedMeasured,
    RequestArrived,
    RequestDone,
    RequestGone,
    RequestReturned,
    ShutdownRequested,
    SleepRequested,
    SwitchRequested,
    TimerFired,
    Unpinned,
    WakeDone,
    WakeRequested,
)
from llmux.core.eviction import STOP
from llmux.core.forecast import Forecast, Forecaster, Outlook
from llmux.core.groups import Group
from llmux.core.identifiers import ALL_OF_IT, EVERY_GPU, GpuId, InstanceId, Seconds
from llmux.core.model import Model, Transition
from llmux.core.offered_load import OfferedLoad
from llmux.core.policies.base import Policy
from llmux.core.policy_view import CANDIDATES_MAX
from llmux.core.request import Request
from llmux.core.settings import Limits, ModelSpec
from llmux.core.states import Draining, Evicting, Mode, Serving, State, Stuck, Waking
from llmux.core.waiting import WaitReason, leaving_for, wait_reasons
from llmux.core.world import World
from llmux.errors import Overloaded


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
        groups: Iterable[Group] = (),
    ) -> None:
        self._world = World(specs, limits or Limits(), policy, capacity, groups)
        self._clock = self._world.clock
        self._forecaster = Forecaster(self._world)
        self._offered_load = OfferedLoad(self._world)
        self._timer: Seconds | None = None
        """When the timer that was last asked for fires; None when it has fired."""
        self._decide_again_at: Seconds = math.inf
        """When something is to be decided that no deadline, drain or back-off tells, by the last settling."""

    def admit(self, request: Request, now: Seconds) -> InstanceId | None:
        """Admit a request that would not have to wait; None means: send ``RequestArrived`` instead."""
        model = self._world.models[request.model]
        if not admission.is_open(self._world, model):
            return None
        if not model.in_flight and self._world.rules.companions(model.name):
            return None  # It is used from now on, so that others come along.
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

        While the model serves: nothing is queued that could take the place, and neither another model or program waits
        for it to be idle nor does it leave when it has been. While it drains: others are in flight, and nothing else is
        due.
        """
        world = self._world
        model = world.models[request.model]
        self._clock.now = now
        if type(model.state) is Serving:
            if model.queue.size or world.stopping_until is not None:
                return False
            if len(model.in_flight) <= 1 and self._matters_whether_idle(model):
                return False
        elif type(model.state) is not Draining or len(model.in_flight) <= 1 or not self._nothing_to_decide():
            return False
        admission.finish(world, model, request, completed)
        return True

    def _matters_whether_idle(self, model: Model) -> bool:
        """Whether another model or program waits for this one to be idle, or it leaves when it has been."""
        world = self._world
        is_awaited = len(world.candidates) > 0 or world.default_model is not None or bool(world.missing)
        return is_awaited or model.idle_seconds != math.inf or bool(world.rules.companions(model.name))

    def handle(self, event: Event, now: Seconds) -> list[Action]:
        """Apply one event, then do whatever has become due. The actions are to be performed in order."""
        world = self._world
        self._clock.now = now
        world.event_name = type(event).__name__
        self._apply(event)
        if type(event) is RequestArrived and event.request.instance is None and self._nothing_to_decide():
            self._set_timer(self._decide_again_at)
        else:
            self._settle()
        actions, world.actions = world.actions, []
        return actions

    def _nothing_to_decide(self) -> bool:
        """Whether nothing is due, and nothing can be decided until a switch gets further.

        Only a saving, since settling would find the same: a fifth of a simulated run in which two models take turns.
        """
        world = self._world
        if not world.switches or world.commands or (self._timer is not None and self._timer <= self._clock.now):
            return False
        return switching.occupy_every_gpu(world)

    def _apply(self, event: Event) -> None:  # noqa: C901 - a dispatch table
        world = self._world
        match event:
            case RequestArrived(request):
                admission.arrive(world, request)
                limit_seconds = world.models[request.model].spec.refuse_after.of(request.priority)
                if limit_seconds < math.inf:
                    self._refuse_early(request, limit_seconds)
            case RequestGone(request):
                admission.leave(world, request)
            case RequestDone(request, completed):
                admission.finish(world, world.models[request.model], request, completed)
                admission.admit_waiting(world, world.models[request.model])
            case TimerFired():
                self._timer = None
            case RequestReturned(request, reason):
                admission.come_back(world, request, reason)
            case GpuLeaseRequested(lease):
                leasing.ask(world, lease)
            case MemoryPressure(missing):
                memory_pressure.note(world, missing)
            case WakeDone(instance, error):
                model = world.models[instance.model]
                if instance == model.instance and isinstance(model.state, Waking):
                    failed = switching.finish_wake(world, model, event)
                    if failed and error is not None:
                        commands.fail_switches(world, model, str(error))
            case EvictDone(instance=instance, error=error):
                model = world.models[instance.model]
                if instance == model.instance and isinstance(model.state, Evicting):
                    eviction = model.state.eviction
                    lifecycle.evict_done(world, model, event)
                    commands.end_sleep(world, model, eviction, error)
            case NeedMeasured(instance, placements):
                model = world.models[instance.model]
                if instance == model.instance:
                    world.correct_need(model, placements)
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
                commands.change_eviction(world, world.models[name], eviction)
            case DefaultChanged(default):
                commands.change_default(world, default)
            case HostMemoryShort(missing_mib):
                if world.stopping_until is None:
                    ladder.relieve(world, missing_mib)
            case Unpinned():
                commands.unpin(world)
            case ShutdownRequested():
                shutdown.begin_shutdown(world, event)
            case _:
                assert_never(event)

    def _refuse_early(self, request: Request, limit_seconds: Seconds) -> None:
        """Refuse a request that has just been queued, if it would probably wait for longer than its class may.

        The only one that waits for its model is kept: models whose switch alone takes so long are to have their turn.
        """
        world, model = self._world, self._world.models[request.model]
        if model.queue.size < 2 or request not in model.queue:
            return
        found = self.forecast(request, self._clock.now)
        if found is not None and found.admitted_in_seconds > limit_seconds:
            batch_waits = model.spec.refuse_after.batch_seconds == math.inf
            error = Overloaded(model.name, found.admitted_in_seconds, limit_seconds, batch_waits=batch_waits)
            admission.refuse(world, model, request, error)
            model.estimates.refused()

    def _settle(self) -> None:
        """Look at what is, and do what is due. Level-triggered: it does not matter which event led here.

        1. End requests that have waited too long: nothing below is done for their sake.
        2. End back-offs that are over, so that failed models are candidates in step 5.
        3. Refuse what cannot be served beside models that stay on the GPUs, call off switches that are no longer
           wanted, which may bring victims back to serving, and take back what GPU leases held that are over,
        4. perform the operator's commands, which go before any policy,
        5. and only then decide on new switches, with the GPUs that 3 and 4 left.
        6. Evict what has drained, or whose drain ends now: after 5, because a switch that was just started may find its
           victims idle, and before 7, because a switch waits for its victims.
        7. Take every switch as far as it can go.
        8. Have models leave that have been idle for long enough or for other programs, and the default model come back:
           after 5, in which they may have become victims.
        9. Have sleepers go deeper, once it is known which of them switches need, and who has joined them.
        10. Set the timer for whatever comes next.

        During shutdown there are no switches and no commands: frozen requests resume as far as time and memory allow,
        and every engine is brought nearer to its end.
        """
        world = self._world
        admission.expire(world)  # 1
        if world.backing_off:
            self._end_backoffs()  # 2
        decide_again_at = math.inf
        staying.settle(world)  # 3
        if world.switches:  # there are none during shutdown
            switching.call_off_unwanted(world)
            staying.settle(world)
        if world.gpu_leases:
            leasing.end_released(world)
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
            if world.commands:
                commands.advance_commands(world)  # 4
            if world.commands or world.candidates.entries:
                decide_again_at = switching.decide(world)  # 5
            elif world.switch_wanted_at:
                world.switch_wanted_at = {}
            if world.draining:
                self._finish_drains()  # 6
            if world.switches:
                decide_again_at = min(decide_again_at, switching.advance_all(world))  # 7
            pressure_at, idle_at = memory_pressure.relieve(world), idleness.settle(world)  # 8
            decide_again_at = min(decide_again_at, pressure_at, idle_at, ladder.settle(world))  # 9
        self._decide_again_at = decide_again_at
        self._set_timer(decide_again_at)  # 10

    def _end_backoffs(self) -> None:
        world, now = self._world, self._clock.now
        for model in [model for model in world.backing_off.values() if _retry_at(model) <= now]:
            del world.backing_off[model.name]
            if isinstance(model.state, Stuck):
                lifecycle.begin_evict(world, model, STOP)
            else:
                world.update_candidate(model)

    def _finish_drains(self) -> None:
        # In the order of their wakes. A model that begins to leave is still on the GPU, so the index keeps its size.
        now = self._clock.now
        for model in self._world.on_gpu.values():
            state = model.state
            if type(state) is Draining and (not model.in_flight or now >= state.deadline):
                lifecycle.finish_drain(self._world, model)

    def _set_timer(self, decide_again_at: Seconds) -> None:
        world = self._world
        earliest = min(decide_again_at, world.deadlines.earliest(before=decide_again_at))
        for model in world.draining.values() if world.draining else ():
            assert type(model.state) is Draining
            if model.state.deadline < earliest:
                earliest = model.state.deadline
        for model in world.backing_off.values() if world.backing_off else ():
            earliest = min(earliest, _retry_at(model))
        if earliest != math.inf and earliest != self._timer:
            self._timer = earliest
            world.emit(SetTimer(earliest))

    # Reading back, for status and tests: nothing below changes anything.

    @property
    def limits(self) -> Limits:
        """The times and bounds that hold under every policy."""
        return self._world.limits

    @property
    def mode(self) -> Mode:
        """Automatic or manual."""
        return self._world.mode

    @property
    def models(self) -> Sequence[Model]:
        """The record of every configured model, in the configuration's order; not to be changed."""
        return [model for model in self._world.models.values() if not model.spec.is_gpu_lease]

    @property
    def gpu_leases(self) -> Sequence[Model]:
        """The record of every GPU lease that is asked for or held, in the order of asking; not to be changed."""
        return list(self._world.gpu_leases.values())

    def find_gpu_lease(self, name: str) -> Model | None:
        """One GPU lease's record; None once it is over."""
        return self._world.gpu_leases.get(name)

    def model(self, name: str) -> Model:
        """One model's record; not to be changed."""
        return self._world.models[name]

    def state(self, name: str) -> State:
        """One model's state."""
        return self._world.models[name].state

    def history(self, name: str) -> Sequence[Transition]:
        """A model's latest transitions, oldest first."""
        return tuple(self._world.models[name].history)

    def leaves_at(self, name: str) -> Seconds:
        """When a model leaves the GPU if no request comes; infinity where it stays, or is not idle."""
        return idleness.leaves_at(self._world, self._world.models[name])

    @property
    def host_mib(self) -> int:
        """What sleeping models hold of host memory together, and those that are leaving will, as far as known."""
        return self._world.host_mib

    def switching(self) -> tuple[str, str] | None:
        """From which model to which a switch is under way; the first is empty when nothing has to leave."""
        switches = self._world.switches.values()
        # What needs no GPU comes beside the switch that is worth telling.
        switch = min(switches, key=lambda switch: not self.model(switch.target).spec.uses_gpu, default=None)
        return None if switch is None else (switch.victims[0] if switch.victims else "", switch.target)

    def leaving_for(self, model: str) -> str | None:
        """The target of the switch for which a model leaves, or has left; None if there is none."""
        return leaving_for(self._world, model)

    def wait_reasons(self, now: Seconds) -> Mapping[str, WaitReason]:
        """What the requests of each model wait for, of those models for which any wait."""
        return wait_reasons(self._world, now)

    def note_forecast(self, request: Request, now: Seconds) -> None:
        """Note in a request that has just been queued how long it will probably wait."""
        found = self.forecast(request, now)
        request.forecast_seconds = None if found is None else found.admitted_in_seconds

    def forecast(self, request: Request, now: Seconds) -> Forecast | None:
        """How long a request of this model and class that comes now, or has just come, will probably wait.

        None where nobody can tell.
        """
        return self._forecaster.of_last(self._world.models[request.model], request.priority, now)

    def outlook(self, request: Request, now: Seconds) -> Outlook | None:
        """What the client of a queued request can be told; None if it is not queued, or far back."""
        return self._forecaster.outlook(request, now)

    def forecasts(self, now: Seconds) -> Mapping[str, Forecast]:
        """How long the request that goes first will probably wait, of the models for which any wait."""
        return self._forecaster.of_heads(now)

    def offered_load(self, now: Seconds) -> float | None:
        """What is asked of the GPUs, as a multiple of what they can do; None before enough was seen."""
        return self._offered_load.measure(now)

    def awaiting_wake(self) -> Sequence[str]:
        """The first models that are to come onto a GPU and whose wakes have not begun, in their probable order."""
        world = self._world
        wanted = (*world.switches, *islice(world.candidates, CANDIDATES_MAX))
        return [name for name in dict.fromkeys(wanted) if world.models[name].can_be_woken]

    @property
    def is_waking(self) -> bool:
        """Whether any wake is under way."""
        return any(switch.is_waking for switch in self._world.switches.values())

    @property
    def is_settled(self) -> bool:
        """Whether no model waits to come onto a GPU, and none is on its way."""
        return not self._world.switches and not len(self._world.candidates)

    @property
    def places_by_memory(self) -> bool:
        """Whether the GPUs have sizes; otherwise a model takes all of all of them."""
        return EVERY_GPU not in self._world.gpus.capacity

    def gpu_memory(self) -> Mapping[GpuId, tuple[int, int]]:
        """Of each GPU, its memory and what no model holds of it, in MiB."""
        return {gpu: (total, self._world.gpus.free[gpu]) for gpu, total in self._world.gpus.capacity.items()}

    def active_model(self) -> str | None:
        """The model on its way in, else the one woken last, else none."""
        return commands.active_model(self._world)

    @property
    def is_stopping(self) -> bool:
        """Whether shutdown has been asked for."""
        return self._world.stopping_until is not None

    def wait_bound(
        self,
        longest_switch_seconds: Seconds,
        model: str | None = None,
        *,
        leases: int = 0,
        longest_lease_seconds: Seconds = 0.0,
    ) -> Seconds:
        """The longest time that a queue's head waits for its switch to begin, if no wake fails: one model's, or any's.

        ``max_wait + S + (N - 1) * (max(max(min_active, Q) + drain_timeout, F, S) + S)``, with N models, S the longest
        switch, and Q and F the policy's longest quanta of a model that must drain and of one that can freeze: the head
        is overdue after max_wait; a switch may just have begun; and each other model may be switched to once before it,
        and stays for its quantum and its drain or, where its requests freeze, for its quantum or as long as its wake
        took.

        Each of ``leases`` GPU leases, which are at most ``gpu_leases_max``, may come before it too and be held for
        ``longest_lease_seconds``: one that is asked for after the head is overdue comes behind it.
        """
        world = self._world
        max_wait = max(record.max_wait_seconds for record in world.models.values() if model in (None, record.name))
        freezing, draining = (
            world.policy.quantum_max_seconds(longest_switch_seconds, can_freeze=can_freeze)
            for can_freeze in (True, False)
        )
        stay = max(world.limits.min_active_seconds, draining)
        residence = max(stay + world.limits.drain_timeout_seconds, freezing, longest_switch_seconds)
        others = len(world.models) - len(world.gpu_leases) - (model not in world.gpu_leases)
        held = leases * (longest_lease_seconds + 2 * longest_switch_seconds)
        return max_wait + longest_switch_seconds + others * (residence + longest_switch_seconds) + held


def _retry_at(model: Model) -> Seconds:
    """When a failed or stuck model is tried again."""
    retry_at: Seconds = getattr(model.state, "retry_at", float("-inf"))
    return retry_at
