"""Plays the runtime to the production ``Scheduler`` on virtual time, and keeps its own account of the truth.

Every action is checked against that account, which knows nothing of the scheduler's: what each instance holds on the
GPUs, which are awake, and where every request is.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmux.core.actions import (
    AbortEvict,
    AbortWake,
    Action,
    Admit,
    CommandDone,
    Evict,
    Freeze,
    Hold,
    Reject,
    Revoke,
    SetTimer,
    ShutdownDone,
    SteppedDown,
    SwitchDone,
    SwitchFailed,
    Thaw,
    Wake,
)
from llmux.core.events import (
    DefaultChanged,
    Event,
    EvictDone,
    GpuLeaseRequested,
    InstanceExited,
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
from llmux.core.eviction import Drain, Eviction, Process
from llmux.core.gpu_lease import GpuLease, lease_placements
from llmux.core.groups import Group
from llmux.core.identifiers import ALL_OF_IT, GpuId, InstanceId
from llmux.core.policies.base import Policy
from llmux.core.request import Priority, Request
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.states import Asleep, Cold, Draining, Failed, Manual
from llmux.core.switch_costs import SAMPLE_MAX_SECONDS
from llmux.errors import EngineDied, FailureReason, RequestError
from tests.support.core_truth import Engine, Fates, Held, Place, TrackedRequest, evicted
from tests.support.invariants import check_invariants

STEPS_AT_ONCE_MAX = 10_000


@dataclass
class CoreDriver:
    """Sends events, performs actions, advances virtual time, and asserts the promises at every step."""

    specs: Sequence[ModelSpec]
    policy: Policy
    limits: Limits = field(default_factory=Limits)
    capacity: Mapping[GpuId, int] = field(default_factory=lambda: ALL_OF_IT)
    groups: Sequence[Group] = ()
    fates: Fates = field(default_factory=Fates)
    short_cuts: bool = True
    check_bound: bool = False
    check_every: int = 1
    """After how many events everything is checked, which takes as long as there are models."""
    host_mib: Mapping[str, Mapping[Eviction, int]] = field(default_factory=dict)
    """What each model holds of host memory after each eviction."""
    mixed_requests: bool = False
    """Unless told otherwise: every fourth request is not streamed, every third does not return if its engine dies."""

    def __post_init__(self) -> None:
        self.now = 0.0
        self._steps_now = 0
        self._unchecked = 0
        self.scheduler = Scheduler(self.specs, self.policy, self.limits, self.capacity, self.groups)
        self._pins: set[int] = set()
        self.kept = {spec.name for spec in self.specs if spec.keep}
        self.engines = {spec.name: Engine(spec, host_mib=self.host_mib.get(spec.name, {})) for spec in self.specs}
        self.requests: dict[int, TrackedRequest] = {}
        self.waiting: dict[str, dict[int, None]] = {spec.name: {} for spec in self.specs}
        self.in_flight: dict[str, dict[int, None]] = {spec.name: {} for spec in self.specs}
        self.frozen: dict[str, dict[int, None]] = {spec.name: {} for spec in self.specs}
        self.freezes = 0
        self.leases_asked = 0
        self.commands: dict[int, Event] = {}
        self.command_errors: dict[int, str | None] = {}
        self.default: str | None = None
        self.timer_at: float | None = None
        self.stopping = False
        self.stopped = False
        self.log: list[Action] = []
        self.switches: list[SwitchDone] = []
        self.longest_wait = 0.0
        self.faults_at: list[float] = []
        self._numbers = itertools.count(1)
        self._future: list[tuple[float, int, Callable[[], None]]] = []
        self._backlog: list[Event] = []

    # Driving

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Do something at a later time."""
        heapq.heappush(self._future, (when, next(self._numbers), act))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something so many seconds from now."""
        self.at(self.now + seconds, act)

    def run_until(self, when: float) -> None:
        """Let time pass, with everything that happens meanwhile."""
        while (next_at := self._next_at()) <= when:
            self._step(next_at)
        self.now = max(self.now, when)

    def run_while(self, busy: Callable[[], bool], until: float) -> None:
        """Let time pass while something is the case; fails at ``until``."""
        while busy():
            next_at = self._next_at()
            assert next_at <= until, f"still waiting at {self.now}, next event {next_at}, allowed until {until}"
            self._step(next_at)

    def _next_at(self) -> float:
        future = self._future[0][0] if self._future else float("inf")
        return min(future, self.timer_at if self.timer_at is not None else float("inf"))

    def _step(self, at: float) -> None:
        assert at >= self.now - 1e-9, "time goes back"
        self._steps_now = self._steps_now + 1 if at <= self.now else 0
        assert self._steps_now < STEPS_AT_ONCE_MAX, f"time stands still at {self.now}"
        self.now = max(self.now, at)
        if self.timer_at is not None and self.timer_at <= at:
            self.timer_at = None
            self.send(TimerFired())
        else:
            heapq.heappop(self._future)[2]()

    def send(self, event: Event) -> list[Action]:
        """Deliver an event, perform what follows, and check everything; also of events raised meanwhile."""
        self._backlog.append(event)
        first: list[Action] | None = None
        while self._backlog:
            actions = self._deliver(self._backlog.pop(0))
            first = actions if first is None else first
        return first or []

    def _deliver(self, event: Event) -> list[Action]:
        if isinstance(event, Unpinned):
            self.kept.clear()
            self._pins.clear()
        elif isinstance(event, WakeRequested) and event.keep:
            self._pins.add(event.command)
        if isinstance(event, DefaultChanged):
            self.default = event.model
        woken, waiters = self._woken_by(event)
        actions = self.scheduler.handle(event, self.now)
        for action in actions:
            self._perform(action)
        self.log += actions
        self._forget_ended_leases()
        if woken is not None:
            self._check_waiters_went_first(woken, waiters, actions)
        self.check()
        return actions

    def arrive(
        self,
        model: str,
        size_bytes: int = 0,
        *,
        may_wake: bool = True,
        priority: Priority = Priority.INTERACTIVE,
        streams: bool | None = None,
        comes_back: bool | None = None,
        keep_alive_seconds: float | None = None,
    ) -> TrackedRequest:
        """A client asks for a model. ``comes_back``: the request returns if its engine dies."""
        number = next(self._numbers)
        if streams is None:
            streams = not self.mixed_requests or number % 4 != 0
        if comes_back is None:
            comes_back = not self.mixed_requests or number % 3 != 0
        record = Request(
            number,
            model,
            size_bytes=size_bytes,
            may_wake=may_wake,
            priority=priority,
            streams=streams,
            keep_alive_seconds=keep_alive_seconds,
        )
        request = TrackedRequest(record, self.now, comes_back=comes_back)
        self.requests[record.id] = request
        self.waiting[model][record.id] = None
        if self.short_cuts:
            instance = self.scheduler.admit(record, self.now)
            if instance is not None:
                self._perform(Admit(record, instance))
                self.check()
                return request
        self.send(RequestArrived(record))
        assert may_wake or request.place is not Place.WAITING, "a request that may not wake waits"
        return request

    def lease(
        self, memory_mib: int | None = None, count: int = 1, *, timeout_seconds: float = float("inf")
    ) -> TrackedRequest:
        """A program wants so much memory of each of so many GPUs."""
        number = next(self._numbers)
        placements = lease_placements(self.capacity, memory_mib, count)
        assert placements, "it would never fit"
        record = GpuLease(number, placements, timeout_seconds=timeout_seconds)
        lease = TrackedRequest(record, self.now, comes_back=False)
        self.requests[number] = lease
        self.engines[record.model] = Engine(record.spec)
        for places in (self.waiting, self.in_flight, self.frozen):
            places[record.model] = {}
        self.waiting[record.model][number] = None
        self.leases_asked += 1
        self.send(GpuLeaseRequested(record))
        return lease

    def _forget_ended_leases(self) -> None:
        """What the core has forgotten of leases must be over: nobody waits for it, nobody has it, nothing is held."""
        known = {model.name for model in self.scheduler.gpu_leases}
        for name in [name for name, engine in self.engines.items() if engine.spec.is_gpu_lease and name not in known]:
            engine = self.engines.pop(name)
            assert engine.pending is None and not engine.held, f"{name} was forgotten, and still holds {engine.held}"
            for places in (self.waiting, self.in_flight, self.frozen):
                assert not places.pop(name), f"{name} was forgotten, and its program does not know"

    def leave(self, request: TrackedRequest) -> None:
        """The client goes away, wherever its request is."""
        if request.place is Place.WAITING:
            self._place(request, Place.ENDED)
            self.send(RequestGone(request.record))
        else:
            self.complete(request, completed=False)

    def answer(self, request: TrackedRequest) -> None:
        """A streaming request has its first token, be it frozen: that may have been on its way."""
        if request.place in (Place.IN_FLIGHT, Place.FROZEN) and request.streams:
            request.has_first_token = True
            self.scheduler.first_token(request.record, self.now)
            self.check()

    def complete(self, request: TrackedRequest, *, completed: bool = True) -> None:
        """An admitted request ends, also a frozen one whose last words were on their way."""
        if request.place not in (Place.IN_FLIGHT, Place.FROZEN):
            return
        self._place(request, Place.ENDED)
        if completed:
            self.engines[request.model].wake_failures = 0
        if self.short_cuts and self.scheduler.done(request.record, completed, self.now):
            self.check()
            return
        self.send(RequestDone(request.record, completed))

    def give_back(self, request: TrackedRequest, reason: str = "connection lost") -> None:
        """An admitted request lost its connection before the first byte; the engine may well be alive."""
        self.send(self._returned(request, reason))

    def finish_wake(
        self, model: str, error: str | None = None, *, out_of_memory: bool = False, is_mismatch: bool = False
    ) -> list[Action]:
        """The outcome of the pending wake."""
        engine = self.engines[model]
        assert isinstance(engine.pending, Wake)
        action, engine.pending = engine.pending, None
        engine.awake = engine.running = error is None
        if error is not None:
            self.faults_at.append(self.now)
        engine.asleep = None
        engine.dead = False
        if error is None:
            engine.awake_since = self.now
        elif not out_of_memory:
            engine.wake_failures += 1
            by_image = action.asleep is not None and action.asleep.process is Process.CHECKPOINT
            if engine.wake_failures > 1 or not (is_mismatch or by_image):
                engine.not_before = self.now + self.limits.backoff_first_seconds * 2 ** (engine.wake_failures - 1)
                engine.not_before = min(engine.not_before, self.now + self.limits.backoff_max_seconds)
        can_freeze = error is None and engine.spec.drain is Drain.FREEZE
        reason = None if error is None else FailureReason(error)
        return self.send(WakeDone(action.instance, reason, out_of_memory, is_mismatch, can_freeze))

    def finish_evict(self, model: str, outcome: EvictDone | None = None) -> list[Action]:
        """The outcome of the pending eviction."""
        engine = self.engines[model]
        assert isinstance(engine.pending, Evict)
        action, engine.pending = engine.pending, None
        outcome = outcome or evicted(action)
        if outcome.error is not None:
            self.faults_at.append(self.now)
        if outcome.error is None:
            engine.awake = False
            engine.asleep = outcome.residency.eviction if isinstance(outcome.residency, Asleep) else None
            engine.running = engine.asleep is not None
            engine.dead = False
            if engine.asleep in engine.host_mib:
                outcome = replace(outcome, host_mib=engine.host_mib[engine.asleep])
        else:
            engine.awake_since = float("-inf")
        return self.send(outcome)

    def exit(self, model: str, reason: str = "exit code 1") -> None:
        """The model's engine dies by itself; under a wake the attempt fails too."""
        engine = self.engines[model]
        if not engine.running and engine.pending is None:
            return
        engine.dead = True
        self.faults_at.append(self.now)
        self.send(InstanceExited(InstanceId(model, engine.generation), FailureReason(reason)))
        if isinstance(engine.pending, Wake) and isinstance(self.fates, Held):
            self.finish_wake(model, reason)

    def measure(self, model: str, mib: int, residue_mib: int | None = None) -> None:
        """The model's engine is seen to hold so much of each of its GPUs, and after any eviction so much or less."""
        engine = self.engines[model]

        def measured(place: Placement) -> Placement:
            awake = {gpu: min(mib, self.capacity[gpu]) for gpu in place.awake}
            most = mib if residue_mib is None else residue_mib
            asleep = {
                eviction: {gpu: min(size, most, awake[gpu]) for gpu, size in residue.items()}
                for eviction, residue in place.asleep.items()
            }
            return replace(place, awake=awake, asleep=asleep)

        engine.places = tuple(map(measured, engine.spec.placements))
        self.send(NeedMeasured(InstanceId(model, engine.generation), engine.places))

    def command(self, make: type[SwitchRequested | WakeRequested | SleepRequested], model: str, **more: object) -> int:
        """An operator's command; returns its number."""
        number = next(self._numbers)
        event = make(number, model, **more)  # type: ignore[arg-type]
        self.commands[number] = event
        self.send(event)
        return number

    def shut_down(self, drain_seconds: float) -> None:
        """The end is asked for."""
        self.stopping = True
        self.send(ShutdownRequested(drain_seconds))

    # Looking

    def in_place(self, place: Place) -> list[TrackedRequest]:
        """All requests that are there."""
        if place is Place.WAITING:
            return [self.requests[number] for queue in self.waiting.values() for number in queue]
        if place is Place.IN_FLIGHT:
            return [self.requests[number] for flight in self.in_flight.values() for number in flight]
        if place is Place.FROZEN:
            return [self.requests[number] for frozen in self.frozen.values() for number in frozen]
        return [request for request in self.requests.values() if request.place is place]

    @property
    def pending(self) -> list[Wake | Evict]:
        """The actions whose outcomes are still to come."""
        return [engine.pending for engine in self.engines.values() if engine.pending is not None]

    # Performing

    def _place(self, request: TrackedRequest, place: Place) -> None:
        self.waiting[request.model].pop(request.number, None)
        self.in_flight[request.model].pop(request.number, None)
        self.frozen[request.model].pop(request.number, None)
        if place is Place.WAITING:
            self.waiting[request.model][request.number] = None
        elif place is Place.IN_FLIGHT:
            self.in_flight[request.model][request.number] = None
        elif place is Place.FROZEN:
            self.frozen[request.model][request.number] = None
        request.place = place

    def _perform(self, action: Action) -> None:  # noqa: C901 - a dispatch table
        match action:
            case Admit():
                self._admit(action)
            case Reject(record, error):
                request = self.requests[record.id]
                assert request.place is Place.WAITING, f"{action} for a request that is {request.place}"
                request.error = error
                self._place(request, Place.ENDED)
            case Revoke(record, error):
                self._revoke(self.requests[record.id], error)
            case Freeze(record):
                self._freeze(self.requests[record.id])
            case Hold(record):
                self._hold(self.requests[record.id])
            case Thaw(record):
                self._thaw(self.requests[record.id])
            case Wake():
                self._wake(action)
            case Evict():
                self._evict(action)
            case AbortWake(instance):
                assert isinstance(self.engines[instance.model].pending, Wake), f"{action}: no wake to abort"
            case AbortEvict(instance):
                assert isinstance(self.engines[instance.model].pending, Evict), f"{action}: no eviction to abort"
            case SetTimer(at):
                assert at >= self.now, f"a timer in the past: {at} < {self.now}"
                self.timer_at = at
            case CommandDone(number, failure):
                assert number in self.commands, f"{action}: unknown, or ended before"
                event = self.commands.pop(number)
                if failure is None and number in self._pins:
                    self.kept.add(event.model)  # type: ignore[union-attr]
                self.command_errors[number] = None if failure is None else str(failure)
            case SwitchDone():
                times = (action.cooldown_seconds, action.drain_seconds, action.sleep_seconds, action.wake_seconds)
                assert min(times) >= 0, f"negative times: {action}"
                self.switches.append(action)
            case SwitchFailed(model, _):
                assert not self.engines[model].awake
            case SteppedDown():
                self._step_down(action)
            case ShutdownDone():
                assert self.stopping and not self.stopped, "shutdown reported twice, or unasked"
                assert not self.pending, "shutdown reported with outcomes outstanding"
                self.stopped = True

    def _step_down(self, action: SteppedDown) -> None:
        engine = self.engines[action.model]
        assert engine.pending is None, f"{action}: {engine.pending} is under way"
        assert action.eviction in engine.spec.ladder, f"{action}: not one of its steps"
        assert action.eviction.depth > action.before.depth, f"{action}: no step down"
        assert engine.awake or engine.asleep == action.before, f"{action}: it left by {engine.asleep}"
        assert action.model not in self.scheduler._world.switches, f"{action} while it is being woken"
        if self.frozen[action.model]:
            others = self._holders() - {action.model}
            assert all(self.frozen[other] for other in others), f"{action} of frozen requests, before {others}"

    def _holders(self) -> set[str]:
        """The sleepers that could give back host memory; one that is stuck is to be tried again later."""
        woken = self.scheduler._world.switches
        return {
            name
            for name, engine in self.engines.items()
            if engine.held_mib and isinstance(self.scheduler.state(name), Asleep) and name not in woken
        }

    def _check_host_memory(self) -> None:
        """Above the maximum only for as long as somebody is giving back what is too much, if anybody can."""
        if (maximum := self.limits.host_memory_max_mib) is None or self.stopping:
            return
        staying = sum(engine.held_mib for engine in self.engines.values() if engine.pending is None)
        assert staying <= maximum or not self._holders(), f"{staying} MiB of host memory are held, {maximum} may be"

    def _admit(self, action: Admit) -> None:
        request, engine = self.requests[action.request.id], self.engines[action.instance.model]
        assert request.place is Place.WAITING, f"{action} for a request that is {request.place}"
        assert request.model == action.instance.model, f"{action}: the wrong model"
        assert action.instance.generation == engine.generation, f"{action}: an old instance"
        assert engine.awake and engine.pending is None, f"{action}: the engine is not awake now"
        assert not self.stopping, f"{action} during shutdown"
        assert request.attempts < self.limits.attempts_max, f"{action}: attempt number {request.attempts + 1}"
        mode = self.scheduler.mode
        assert not isinstance(mode, Manual) or mode.allowed == request.model, f"{action} against the mode"
        request.admitted_at = self.now
        request.has_first_token = False
        request.held = False
        self._place(request, Place.IN_FLIGHT)
        assert len(self.in_flight[request.model]) <= engine.spec.max_in_flight, f"{action}: above max_in_flight"
        self._run(request, self.fates.request(request))

    def _run(self, request: TrackedRequest, fate: tuple[float, bool] | None) -> None:
        """Let an admitted request end in time, unless it is frozen or taken back before."""
        if request.record.keep_alive_seconds is not None:
            self.engines[request.model].keep_alive_seconds = request.record.keep_alive_seconds
        if fate is None:
            return
        seconds, completed = fate
        began_at = request.admitted_at = self.now
        request.remaining = fate

        def end() -> None:
            if request.place is Place.IN_FLIGHT and request.admitted_at == began_at:
                self.complete(request, completed=completed)

        def answer() -> None:
            if request.place is Place.IN_FLIGHT and request.admitted_at == began_at:
                self.answer(request)

        self.after(seconds / 3, answer)
        self.after(seconds, end)

    def _freeze(self, request: TrackedRequest) -> None:
        engine = self.engines[request.model]
        assert request.place is Place.IN_FLIGHT, f"frozen while {request.place}"
        assert engine.awake and engine.spec.drain is Drain.FREEZE, f"{request.model} cannot freeze"
        assert not self.stopping, "frozen during shutdown"
        mode = self.scheduler.mode
        assert not isinstance(mode, Manual) or mode.allowed == request.model, "frozen, and the mode keeps it so"
        self.freezes += 1
        request.frozen_at = self.now
        request.held = False
        if request.remaining is not None:
            assert request.admitted_at is not None
            seconds, completed = request.remaining
            request.remaining = (max(0.0, request.admitted_at + seconds - self.now), completed)
        request.admitted_at = None
        self._place(request, Place.FROZEN)

    def _hold(self, request: TrackedRequest) -> None:
        assert request.place is Place.FROZEN, f"held while {request.place}"
        assert self.engines[request.model].pending is None, "held after the wake has begun"
        request.held = True

    def _thaw(self, request: TrackedRequest) -> None:
        engine = self.engines[request.model]
        assert request.held, "thawed without having been held"
        assert request.place is Place.FROZEN, f"thawed while {request.place}"
        assert engine.awake and engine.pending is None, "thawed, and its engine is not awake"
        request.admitted_at = self.now
        self._place(request, Place.IN_FLIGHT)
        self._run(request, request.remaining)

    def _revoke(self, request: TrackedRequest, error: RequestError) -> None:
        assert request.place in (Place.IN_FLIGHT, Place.FROZEN), f"revoked while {request.place}"
        if isinstance(error, EngineDied) and request.comes_back:
            self._backlog.append(self._returned(request, str(error)))
        else:
            request.error = error
            self._place(request, Place.ENDED)

    def _returned(self, request: TrackedRequest, reason: str) -> RequestReturned:
        """One more attempt of a request waits from now on."""
        request.attempts += 1
        self._place(request, Place.WAITING)
        return RequestReturned(request.record, FailureReason(reason))

    def _wake(self, action: Wake) -> None:
        name = action.instance.model
        engine = self.engines[name]
        assert engine.pending is None, f"{action}: {engine.pending} is still under way"
        assert not engine.awake, f"{action}: awake already"
        assert not self.stopping or self.frozen[name], f"{action} during shutdown, for nobody"
        assert self.now >= engine.not_before, f"{action}: the back-off lasts until {engine.not_before}"
        if action.asleep is None:
            assert not engine.running, f"{action}: a cold start beside a running engine"
            assert action.instance.generation == engine.generation + 1, f"{action}: not a new generation"
        else:
            assert engine.asleep == action.asleep, f"{action}: it left by {engine.asleep}"
            assert action.gpus == (engine.gpus or action.gpus), f"{action}: its engine is on {engine.gpus}"
            assert action.instance.generation == engine.generation
        engine.generation = action.instance.generation
        asked = any(
            isinstance(event, SwitchRequested | WakeRequested) and event.model == name
            for event in self.commands.values()
        )
        wanted = self.waiting[name] or self.frozen[name] or asked or name == self.default or self._is_companion(name)
        assert wanted, f"{action}: nobody wants it"
        engine.pending = action
        engine.running = True
        engine.gpus = action.gpus
        self._check_rivals(action)
        free = dict(self.capacity)
        for other in self.engines.values():
            for gpu, size in other.held.items():
                free[gpu] -= size
        # Elsewhere, engines may have turned out to hold more than was thought.
        taken = [gpu for gpu, size in engine.placement.awake.items() if size]
        assert all(free[gpu] >= 0 for gpu in taken), f"{action}: over-committed, {free}"
        fate = self.fates.wake(action)
        if fate is not None:
            seconds, error = fate
            self.after(seconds, lambda: self.finish_wake(name, error) and None)

    def _evict(self, action: Evict) -> None:
        name = action.instance.model
        engine = self.engines[name]
        assert engine.pending is None, f"{action}: {engine.pending} is still under way"
        assert engine.running, f"{action}: no engine runs"
        assert action.instance.generation == engine.generation
        assert not self.in_flight[name], f"{action}: requests are in flight"
        assert action.freeze == bool(self.frozen[name]), f"{action}, but frozen are {self.frozen[name]}"
        assert not action.freeze or action.eviction.keeps_process, f"{action}: stopped with requests frozen in it"
        assert not self.stopped, f"{action} after the shutdown was reported"
        if engine.asleep is None:
            engine.left_at = self.now
            asked = any(isinstance(e, SleepRequested) and e.model == name for e in self.commands.values())
            stays_until = engine.awake_since + self.limits.min_active_seconds
            is_done_with = engine.keep_alive_seconds == 0.0 or engine.spec.is_gpu_lease
            may_leave = asked or is_done_with or engine.dead or self.stopping or self.now >= stays_until
            assert may_leave, f"{action} before {stays_until}"
            is_stuck = engine.awake_since == float("-inf")
            is_forced = asked or engine.dead or self.stopping or is_stuck
            assert is_forced or name not in self.kept, f"{action}, and it is pinned"
            coming = self.scheduler.leaving_for(name)
            for group in self.groups:
                is_kept = group.persistent and name in group.models and coming not in (None, *group.models)
                assert is_forced or not is_kept, f"{action} for {coming}, which its group does not let"
            engine.keep_alive_seconds = None
        engine.pending = action
        fate = self.fates.evict(action)
        if fate is not None:
            seconds, outcome = fate
            self.after(seconds, lambda: self.finish_evict(name, outcome) and None)

    def _is_companion(self, name: str) -> bool:
        """Whether another one of a group that is to be together is in use."""
        return any(
            group.together and name in group.models and any(self.in_flight[other] for other in group.models)
            for group in self.groups
        )

    def _check_rivals(self, action: Wake) -> None:
        name = action.instance.model
        for group in self.groups:
            if group.exclusive and name in group.models and self.engines[name].spec.uses_gpu:
                beside = [other for other in group.models if other != name and self.engines[other].is_on_gpu]
                assert not beside, f"{action} beside {beside} of an exclusive group"

    # Checking

    def _woken_by(self, event: Event) -> tuple[str | None, list[int]]:
        if not isinstance(event, WakeDone) or event.error is not None or self.stopping:
            return None, []
        name = event.instance.model
        if event.instance.generation != self.engines[name].generation or self.engines[name].pending is not None:
            return None, []
        if not isinstance(self.scheduler.state(name), Asleep | Cold) and self.engines[name].awake:
            return name, list(self.waiting[name])
        return None, []

    def _check_waiters_went_first(self, name: str, waiters: list[int], actions: Sequence[Action]) -> None:
        evicted_at = next((i for i, a in enumerate(actions) if isinstance(a, Evict) and a.instance.model == name), None)
        admitted = [a.request.id for a in actions[:evicted_at] if isinstance(a, Admit) and a.instance.model == name]
        refused = {a.request.id for a in actions if isinstance(a, Reject)}
        max_wait = self.max_wait_seconds(name)
        order = sorted(self._turn(number, max_wait) for number in waiters if number not in refused)
        thawed = sum(isinstance(a, Thaw) and a.request.model == name for a in actions)
        expected = order[: self.engines[name].spec.max_in_flight - thawed]
        went = [self._turn(number, max_wait) for number in admitted]
        assert went == expected, f"{name} was woken, but its waiters were not admitted in order"

    def max_wait_seconds(self, model: str) -> float:
        """How long the model's requests wait until they are overdue."""
        own = self.engines[model].spec.max_wait_seconds
        return self.limits.max_wait_seconds if own is None else own

    def _turn(self, number: int, max_wait: float) -> tuple[float, bool]:
        """What orders admissions: a batch request counts as if it had come so much later."""
        request = self.requests[number]
        is_batch = request.priority is Priority.BATCH
        return request.arrived_at + (max_wait if is_batch else 0.0), is_batch

    def check(self) -> None:
        """Everything that must hold between two events."""
        self._unchecked += 1
        if self._unchecked < self.check_every:
            return
        self._unchecked = 0
        check_invariants(self.scheduler, self.now)
        assert self.timer_at == self.scheduler._timer or self._timer_is_earlier(), "the timer was not announced"
        for name in self.engines:
            model = self.scheduler.model(name)
            assert _ids(model.in_flight) == set(self.in_flight[name]), f"{name}: in flight differs from the truth"
            assert _ids(model.frozen) == set(self.frozen[name]), f"{name}: frozen differs from the truth"
            awaiting_first_token = {
                number
                for number in (*self.in_flight[name], *self.frozen[name])
                if self.requests[number].streams and not self.requests[number].has_first_token
            }
            assert _ids(model.awaiting_first_token) == awaiting_first_token, (
                f"{name}: those without a first token differ from the truth"
            )
            returning = {event.request.id for event in self._backlog if isinstance(event, RequestReturned)}
            assert _ids(model.queue) == set(self.waiting[name]) - returning, f"{name}: waiting differs from the truth"
        self._check_leases()
        self._check_something_will_happen()
        self._check_host_memory()
        if self.check_bound and not self.stopping:
            self._check_wait_bound()

    def _check_leases(self) -> None:
        leases = self.scheduler.gpu_leases
        assert len(leases) <= self.limits.gpu_leases_max, "more GPU leases than allowed"
        for lease in leases:
            is_here = bool(self.waiting[lease.name] or self.in_flight[lease.name] or self.engines[lease.name].pending)
            stuck = self.engines[lease.name].awake
            assert is_here or stuck, f"{lease.name} is over, and was not forgotten: {lease.state}"
            assert self.stopping or not isinstance(lease.state, Draining), f"{lease.name} drains like a victim"
            if isinstance(lease.state, Failed):
                assert lease.queue, f"{lease.name} failed, and was not forgotten"

    def _timer_is_earlier(self) -> bool:
        return self.timer_at is not None and self.scheduler._timer is None

    def _check_something_will_happen(self) -> None:
        if self.pending or self.in_place(Place.IN_FLIGHT) or self._backlog:
            return
        if not self.commands and not any(self.waiting.values()) and not any(self.frozen.values()):
            return
        limits = self.limits
        max_wait = max(self.max_wait_seconds(name) for name in self.engines)
        turn = max(
            self.policy.quantum_max_seconds(2 * SAMPLE_MAX_SECONDS, can_freeze=can_freeze)
            for can_freeze in (True, False)
        )
        # One that would be frozen stays for as long as its wake took.
        wake = max(model.wake_seconds for model in self.scheduler.models)
        latest = self.now + max(limits.min_active_seconds, max_wait, limits.backoff_max_seconds, turn, wake)
        if isinstance(self.scheduler.mode, Manual):
            latest = max(latest, self.now + limits.request_timeout_seconds)
        assert self.timer_at is not None, "somebody waits, and nothing will ever happen"
        assert self.timer_at <= latest, f"somebody waits, and nothing happens before {self.timer_at}"

    def _check_wait_bound(self) -> None:
        """The time from a queue head's arrival, or the model's leaving, to the beginning of its switch.

        The bound is for the case that nothing fails: each failure meanwhile may cost a back-off and as much again.
        """
        switches = self.scheduler._world.switches
        for name, engine in self.engines.items():
            since = [self.requests[number].arrived_at for number in self.waiting[name]]
            since += [self.requests[number].frozen_at or 0.0 for number in self.frozen[name]]
            if not since or engine.awake or name in switches or isinstance(engine.pending, Wake):
                continue
            bound = self.scheduler.wait_bound(
                self.fates.longest_switch_seconds,
                name,
                leases=min(self.leases_asked, self.limits.gpu_leases_max),
                longest_lease_seconds=self.fates.longest_lease_seconds,
            )
            began_at = max(min(since), engine.left_at)
            failures = sum(at >= began_at for at in self.faults_at)
            bound += failures * (bound + self.limits.backoff_max_seconds)
            waited = self.now - began_at
            self.longest_wait = max(self.longest_wait, waited)
            assert waited <= bound + 1e-6, f"{name}: its head waits {waited:.1f} s for a switch, the bound is {bound}"


def _ids(requests: Iterable[Request]) -> set[int]:
    return {request.id for request in requests}
