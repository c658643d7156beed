"""The scheduler's record of one model: its state, its queue, and what is in flight."""

from collections import deque
from collections.abc import Set
from dataclasses import dataclass
from typing import TypeAlias

from llmux.core.clock import Clock
from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import NOTHING, Footprint, GpuId, InstanceId, Seconds
from llmux.core.request import Request
from llmux.core.request_queue import RequestQueue
from llmux.core.request_times import SAMPLE_INTERVAL_SECONDS, RequestTimes
from llmux.core.settings import ModelSpec, Placement
from llmux.core.sleep_record import SleepRecord
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking
from llmux.errors import StartProgress

HISTORY_LENGTH = 64
"""Transitions kept per model: some ten switches, a few KiB."""


Need: TypeAlias = tuple[tuple[tuple[GpuId, int], ...], ...]
"""The memory that a model would hold in each of some placements, in MiB."""


NUMBERS_MAX = 4096
"""Needs whose numbers are remembered: each new measurement makes another need, so they have to be bounded."""


class NeedNumbers:
    """Gives each need a number to look things up by: hashing the need itself takes microseconds each time."""

    __slots__ = ("_last", "_numbers")

    def __init__(self) -> None:
        self._numbers: dict[tuple[bool, Need], int] = {}
        self._last = 0

    def of(self, need: Need, *, starts_cold: bool) -> int:
        """Different needs never share a number. Equal ones do, until more than ``NUMBERS_MAX`` have been numbered."""
        key = (starts_cold, need)
        number = self._numbers.get(key)
        if number is None:
            if len(self._numbers) >= NUMBERS_MAX:
                self._numbers.clear()
            self._last += 1
            number = self._numbers[key] = self._last
        return number


@dataclass(frozen=True, slots=True)
class Transition:
    """One entry of a model's history: at this time, this event took the model from one state to another."""

    at: Seconds
    event: str
    before: State
    after: State


class Model:
    """Everything the scheduler knows of one model.

    ``state``, ``held``, ``placement`` and ``places``, and what follows from them, are written by ``World``'s methods
    alone, ``kept`` by ``Rules.keep``, ``queue`` and ``frozen`` by ``World``'s methods for requests, because ``World``
    keeps indexes and totals of them.
    """

    __slots__ = (
        "_every_gpu",
        "_need_numbers",
        "_places_need",
        "_places_number",
        "awaiting_first_token",
        "can_freeze",
        "clock",
        "distrusted_evictions",
        "estimates",
        "eviction",
        "eviction_override",
        "failures",
        "frees_memory",
        "frozen",
        "generation",
        "held",
        "history",
        "idle_since",
        "in_flight",
        "instance",
        "keep_alive_seconds",
        "kept",
        "last_completed_at",
        "last_served_at",
        "last_switch_ended_at",
        "last_switch_seconds",
        "max_wait_seconds",
        "name",
        "need",
        "need_number",
        "placement",
        "placements",
        "places",
        "possible_gpus",
        "queue",
        "retried_after_oom",
        "sleep",
        "spec",
        "start_seconds",
        "starts_cold",
        "starts_engine",
        "state",
        "stays_away",
        "wake_seconds",
        "will_hold",
    )

    def __init__(self, spec: ModelSpec, max_wait_seconds: Seconds, clock: Clock, need_numbers: NeedNumbers) -> None:
        self._need_numbers = need_numbers
        self.spec = spec
        self.clock = clock
        self.name = spec.name
        """The model's key in the configuration."""
        self.max_wait_seconds = max_wait_seconds if spec.max_wait_seconds is None else spec.max_wait_seconds
        """How long its oldest waiting request may wait before the model is overdue."""
        self.state: State = Cold() if spec.begins_asleep is None else Asleep(spec.begins_asleep)
        self.placement = spec.placements[0]
        """Where its engine is, or would be started."""
        self.set_places(spec.placements)
        self.held: Footprint = self.footprint(self.state)
        self.will_hold: Footprint = self.remainder(self.state)
        """GPU memory in MiB, now and when it has left, if it is leaving: out of ``Gpus.free`` and ``Gpus.expected``."""
        self.generation = 0
        """Counts cold starts. An outcome that names another generation is stale and ignored."""
        self.instance = InstanceId(spec.name, 0)
        """The present engine, or the last one."""
        self.queue = RequestQueue(self.max_wait_seconds)
        """Requests that have not been admitted. Empty while the model serves and has a free place."""
        self.in_flight: set[Request] = set()
        """Admitted requests whose engine is working on them. Only while Serving or Draining."""
        self.frozen: dict[Request, None] = {}
        """Requests suspended with their engine, the first to be frozen first. Only while Evicting, Asleep or Waking."""
        self.awaiting_first_token: set[Request] = set()
        """Streaming requests, in flight or frozen, that have had no first token."""
        self.can_freeze = False
        """Whether the present engine can suspend its requests; probed at its start."""
        self.wake_seconds: Seconds = 0.0
        """What its last wake from sleep took, with the recompute of what was frozen; 0 after a cold start."""
        self.start_seconds: Seconds | None = None
        """What its last cold start took."""
        self.kept = spec.keep
        """Whether it stays on the GPUs while it is there: as configured, or by a pin."""
        self.distrusted_evictions: set[Eviction] = set()
        """Evictions after which the engine's output differed; not used again until the operator sets them anew."""
        self.eviction_override: Eviction | None = None
        """The operator's choice, over the configured one."""
        self.find_eviction()
        self.failures = 0
        """Failures in a row; sets the back-off. Only a completed request resets it, lest starts go on in a loop."""
        self.retried_after_oom = False
        """Whether a sleeper was stopped already for the wake under way."""
        self.idle_since: Seconds = 0.0
        """When the last request in flight ended, or the model was woken; means nothing while any is in flight."""
        self.keep_alive_seconds: Seconds | None = None
        """How long it stays when it is idle, by the last request that said so; forgotten when it leaves."""
        self.stays_away = False
        """Whether it was taken off the GPU for good: it does not come back before it is asked for."""
        self.sleep = SleepRecord()
        self.last_completed_at: Seconds = float("-inf")
        """When its present engine last answered a request to the end."""
        self.last_served_at: Seconds = float("-inf")
        """When it last stopped being Serving or Draining, or failed to wake. Orders sleepers and candidates."""
        self.last_switch_ended_at: Seconds = float("-inf")
        self.last_switch_seconds: Seconds = 0.0
        """The last switch that brought it onto the GPU: shown to the requests that waited for it."""
        self.estimates = RequestTimes()
        self.history: deque[Transition] = deque(maxlen=HISTORY_LENGTH)

    def set_places(self, places: tuple[Placement, ...]) -> None:
        """Where it may be started from now on, and how much it holds there."""
        self.places = places
        self._places_need: Need = tuple(tuple(placement.awake.items()) for placement in places)
        self._places_number = self._need_numbers.of(self._places_need, starts_cold=True)
        self._every_gpu = frozenset(gpu for placement in places for gpu in placement.awake)
        self.find_placements()

    def find_placements(self) -> None:
        """Take over where it may be woken, after its state, its place or its places have changed."""
        state = self.state
        self.starts_cold = type(state) is Cold or type(state) is Failed
        """Whether no engine of it runs, so that a wake has to start one."""
        self.starts_engine = state.asleep is None if type(state) is Waking else type(state) is not Asleep
        """Whether a switch to it starts its engine, so that nothing else may come to its GPUs meanwhile."""
        self.placements = self.places if self.starts_cold else (self.placement,)
        """In any of its places if it is started, else where its engine is."""
        self.possible_gpus: Set[GpuId] = self._every_gpu if self.starts_cold else self.placement.awake.keys()
        """The GPUs of all its ``placements``."""
        self.need: Need = self._places_need if self.starts_cold else (tuple(self.placement.awake.items()),)
        """Of its ``placements``."""
        self.need_number = (
            self._places_number if self.starts_cold else self._need_numbers.of(self.need, starts_cold=False)
        )
        """The same for models that can take one's place: equal needs, and whether an engine has to be started."""

    def find_eviction(self) -> None:
        """Take over how it leaves, after the operator has chosen, or an eviction is distrusted."""
        chosen = self.eviction_override or self.spec.eviction
        self.eviction: Eviction = STOP if chosen in self.distrusted_evictions else chosen
        """How the model leaves the GPU: the operator's choice, else the configured one; stop if that changes output."""
        self.frees_memory: bool = self.spec.frees_memory(self.eviction)
        """Whether any GPU memory is free when it has left so."""

    def begin(self, request: Request) -> None:
        """A request goes to the engine."""
        if request.streams:
            self.accrue()
            self.awaiting_first_token.add(request)
        elif self.in_flight:
            self.estimates.joined(self.clock.now)
        else:
            self.accrue()
        request.instance = self.instance
        request.attempts += 1
        self.in_flight.add(request)
        if request.keep_alive_seconds is not None:
            self.keep_alive_seconds = request.keep_alive_seconds

    def first_token(self, request: Request) -> None:
        """A request has its first token; a frozen one too, if that was on its way."""
        if request in self.awaiting_first_token:
            request.ttft_seconds = self.clock.now - request.arrived_at
            if request in self.in_flight:
                self.accrue()
                self.estimates.first_token()
            self.awaiting_first_token.discard(request)

    def end(self, request: Request) -> None:
        """A request in flight has ended."""
        now, in_flight = self.clock.now, self.in_flight
        in_flight_seconds = now - request.arrived_at - request.queue_seconds - request.paused_seconds
        if len(in_flight) > 1 and not (request.streams and request in self.awaiting_first_token):
            self.estimates.ended(in_flight_seconds, now)
        else:
            self.accrue()
            self.awaiting_first_token.discard(request)
            self.estimates.ended(in_flight_seconds)
        in_flight.discard(request)
        self.idle_since = now

    def sample(self) -> None:
        """Bring the estimates of a model that serves up to date."""
        now = self.clock.now
        awaits = bool(self.awaiting_first_token) or self.queue.size > 0
        estimates = self.estimates
        estimates.accrue(len(self.in_flight), awaits, now)
        if estimates.sampled_at is None or now - estimates.sampled_at >= SAMPLE_INTERVAL_SECONDS:
            estimates.sample(now)

    def accrue(self) -> None:
        """Account for the time until now. Called before any change of what is in flight, or of whether any waits.

        ``begin`` and ``end`` do without where the model works and goes on working: a request that came and went as one
        of many is the most frequent change of all.
        """
        serves = type(self.state) is Serving
        if serves or type(self.state) is Draining:
            # A request queued behind a drain waits for the switch, not for the engine's prefill.
            awaits = bool(self.awaiting_first_token) or (serves and self.queue.size > 0)
            self.estimates.accrue(len(self.in_flight), awaits, self.clock.now)

    def begin_generation(self) -> None:
        """A new engine is about to be started: outcomes of the last one are stale from now on."""
        self.generation += 1
        self.sleep.refused.clear()
        self.instance = InstanceId(self.spec.name, self.generation)
        self.last_completed_at = float("-inf")

    def footprint(self, state: State) -> Footprint:
        """The GPU memory that the model holds in a state."""
        match state:
            case Asleep(eviction=asleep) | Evicting(asleep=Eviction() as asleep) | Stuck(asleep=Eviction() as asleep):
                return self.placement.residue(asleep)
            case Waking() | Serving() | Draining() | Evicting() | Stuck():
                return self.placement.awake
            case _:
                return NOTHING

    def remainder(self, state: State) -> Footprint:
        """The GPU memory that the model will hold when it has left as the state says; else what it holds in it."""
        match state:
            case Draining(eviction=eviction) | Evicting(eviction=eviction, crash=None):
                return self.placement.residue(eviction)
            case Evicting():
                return NOTHING
            case _:
                return self.footprint(state)

    @property
    def state_since(self) -> Seconds:
        """When its state changed last; 0 if it never did."""
        return self.history[-1].at if self.history else 0.0

    @property
    def awake(self) -> Footprint:
        """The GPU memory that it holds, or would hold, while it is on the GPUs where it is placed."""
        return self.placement.awake

    @property
    def start_progress(self) -> StartProgress | None:
        """How far its cold start is; None unless one is under way."""
        if not isinstance(self.state, Waking) or not self.state.from_cold:
            return None
        elapsed = self.clock.now - self.state.since
        left = None if self.start_seconds is None else self.start_seconds - elapsed
        return StartProgress(elapsed, left if left is not None and left > 0 else None)

    @property
    def is_asked_for(self) -> bool:
        """Whether requests wait for the model, queued or frozen."""
        return self.queue.size > 0 or bool(self.frozen)

    @property
    def head_since(self) -> Seconds | None:
        """Since when the longest-waiting request has waited, queued or frozen; None if none waits."""
        queued = self.queue.oldest_arrived_at
        if not self.frozen:
            return queued
        frozen = next(iter(self.frozen)).waiting_since
        return frozen if queued is None else min(queued, frozen)

    @property
    def has_free_place(self) -> bool:
        """Whether one more request may be in flight."""
        return len(self.in_flight) < self.spec.max_in_flight

    @property
    def can_be_woken(self) -> bool:
        """Whether a wake may be started from the present state."""
        match self.state:
            case Cold() | Asleep():
                return True
            case Failed(retry_at=retry_at):
                return retry_at <= self.clock.now
            case _:
                return False

    @property
    def idle_seconds(self) -> Seconds:
        """How long it stays on the GPU when it is idle."""
        return self.spec.idle_seconds if self.keep_alive_seconds is None else self.keep_alive_seconds

    @property
    def is_idle(self) -> bool:
        """Serving, with nothing in flight and nothing queued."""
        return type(self.state) is Serving and not self.in_flight and not self.queue.size
