"""The scheduler's record of one model: its state, its queue, and what is in flight."""

import math
from collections import deque
from collections.abc import Set
from dataclasses import dataclass

from llmux.core.clock import Clock
from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import NOTHING, Footprint, GpuId, InstanceId, Seconds
from llmux.core.load_estimator import LoadEstimator
from llmux.core.request import Request
from llmux.core.request_queue import RequestQueue
from llmux.core.settings import ModelSpec, Placement
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking
from llmux.errors import StartProgress

HISTORY_LENGTH = 64
"""Transitions kept per model: some ten switches, a few KiB."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One entry of a model's history: at this time, this event took the model from one state to another."""

    at: Seconds
    event: str
    before: State
    after: State


class Model:
    """Everything the scheduler knows of one model.

    ``state`` and ``held`` are written by ``World.set_state`` alone, ``placement`` by ``World.place``, ``queue`` and
    ``frozen`` by ``World``'s methods for requests, because ``World`` keeps indexes and totals of them.
    """

    __slots__ = (
        "_every_gpu",
        "_need",
        "awaiting_first_token",
        "can_freeze",
        "clock",
        "distrusted_evictions",
        "estimates",
        "eviction_override",
        "failures",
        "frozen",
        "generation",
        "held",
        "history",
        "idle_since",
        "in_flight",
        "instance",
        "last_completed_at",
        "last_served_at",
        "last_switch_ended_at",
        "last_switch_seconds",
        "max_wait_seconds",
        "name",
        "placement",
        "queue",
        "retried_after_oom",
        "spec",
        "start_seconds",
        "state",
        "wake_seconds",
    )

    def __init__(self, spec: ModelSpec, max_wait_seconds: Seconds, clock: Clock) -> None:
        self.spec = spec
        self.clock = clock
        self.name = spec.name
        """The model's key in the configuration."""
        self.max_wait_seconds = max_wait_seconds if spec.max_wait_seconds is None else spec.max_wait_seconds
        """How long its oldest waiting request may wait before the model is overdue."""
        self.state: State = Cold() if spec.begins_asleep is None else Asleep(spec.begins_asleep)
        self.placement = spec.placements[0]
        """Where its engine is, or would be started; changed by ``World.place`` alone."""
        self._need = tuple(tuple(placement.awake.items()) for placement in spec.placements)
        self._every_gpu = frozenset(gpu for placement in spec.placements for gpu in placement.awake)
        self.held: Footprint = self.footprint(self.state)
        """GPU memory that it holds now, in MiB; always ``footprint(state)``, and taken out of ``World.free``."""
        self.generation = 0
        """Counts cold starts. An outcome that names another generation is stale and ignored."""
        self.instance = InstanceId(spec.name, 0)
        """The present engine, or the last one."""
        self.queue = RequestQueue(self.max_wait_seconds)
        """Requests that have not been admitted. Empty while the model serves and has a free place."""
        self.in_flight: set[Request] = set()
        """Admitted requests whose engine is working on them. Only while Serving or Draining; at most
        ``spec.max_in_flight``."""
        self.frozen: dict[Request, None] = {}
        """Requests suspended with their engine, in the order of their freezing; they resume when it is back. Only
        while Evicting (with a process that is kept), Asleep or Waking."""
        self.awaiting_first_token: set[Request] = set()
        """Streaming requests, in flight or frozen, that have had no first token."""
        self.can_freeze = False
        """Whether the present engine can suspend its requests; probed at its start."""
        self.wake_seconds: Seconds = 0.0
        """What its last wake from sleep took, with the recompute of what was frozen; 0 after a cold start."""
        self.start_seconds: Seconds | None = None
        """What its last cold start took."""
        self.distrusted_evictions: set[Eviction] = set()
        """Evictions after which the engine's output differed; not used again until the operator sets them anew."""
        self.eviction_override: Eviction | None = None
        """The operator's choice, over the configured one."""
        self.failures = 0
        """Failures in a row; sets the back-off. Only a completed request resets it: an engine that starts well and
        dies at its first request must not be restarted in a loop."""
        self.retried_after_oom = False
        """Whether a sleeper was stopped already for the wake under way."""
        self.idle_since: Seconds = 0.0
        """When the last request in flight ended, or the model was woken; means nothing while any is in flight."""
        self.last_completed_at: Seconds = float("-inf")
        """When its engine last answered a request to the end."""
        self.last_served_at: Seconds = float("-inf")
        """When it last stopped being Serving or Draining, or failed to wake. Orders sleepers, and keeps a model with
        a deep queue from coming back before one that waits."""
        self.last_switch_ended_at: Seconds = float("-inf")
        self.last_switch_seconds: Seconds = 0.0
        """The last switch that brought it onto the GPU: shown to the requests that waited for it."""
        self.estimates = LoadEstimator()
        self.history: deque[Transition] = deque(maxlen=HISTORY_LENGTH)

    def begin(self, request: Request) -> None:
        """A request goes to the engine."""
        self.accrue()
        request.instance = self.instance
        request.attempts += 1
        self.in_flight.add(request)
        if request.streams:
            self.awaiting_first_token.add(request)

    def first_token(self, request: Request) -> None:
        """A request has its first token; a frozen one too, if that was on its way."""
        if request in self.awaiting_first_token:
            if request in self.in_flight:
                self.accrue()
                self.estimates.first_token()
            self.awaiting_first_token.discard(request)

    def end(self, request: Request) -> None:
        """A request in flight has ended."""
        self.accrue()
        self.estimates.ended()
        self.in_flight.discard(request)
        self.awaiting_first_token.discard(request)
        self.idle_since = self.clock.now

    def sample(self) -> None:
        """Bring the estimates up to date."""
        self.accrue()
        self.estimates.sample(self.clock.now)

    def accrue(self) -> None:
        """Account for the time until now. Called before any change of what is in flight, or of whether any waits."""
        serves = type(self.state) is Serving
        if serves or type(self.state) is Draining:
            # A request queued behind a drain waits for the switch, not for the engine's prefill.
            awaits = bool(self.awaiting_first_token) or (serves and self.queue.size > 0)
            self.estimates.accrue(len(self.in_flight), awaits, self.clock.now)

    def begin_generation(self) -> None:
        """A new engine is about to be started: outcomes of the last one are stale from now on."""
        self.generation += 1
        self.instance = InstanceId(self.spec.name, self.generation)

    @property
    def eviction(self) -> Eviction:
        """How the model leaves the GPU: the operator's choice, else the configured one; stop if that changes output."""
        chosen = self.eviction_override or self.spec.eviction
        return STOP if self.distrusted_evictions and chosen in self.distrusted_evictions else chosen

    def footprint(self, state: State) -> Footprint:
        """The GPU memory that the model holds in a state."""
        match state:
            case Asleep(eviction=asleep) | Evicting(asleep=Eviction() as asleep) | Stuck(asleep=Eviction() as asleep):
                return self.placement.residue(asleep)
            case Waking() | Serving() | Draining() | Evicting() | Stuck():
                return self.placement.awake
            case _:
                return NOTHING

    @property
    def awake(self) -> Footprint:
        """The GPU memory that it holds, or would hold, while it is on the GPUs where it is placed."""
        return self.placement.awake

    @property
    def need(self) -> tuple[tuple[tuple[GpuId, int], ...], ...]:
        """The memory that it would hold in each of its ``placements``: equal for models that can take one's place."""
        return self._need if isinstance(self.state, Cold | Failed) else (tuple(self.placement.awake.items()),)

    @property
    def possible_gpus(self) -> Set[GpuId]:
        """The GPUs of all its ``placements``."""
        return self._every_gpu if isinstance(self.state, Cold | Failed) else self.placement.awake.keys()

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Where it may be woken: anywhere that is configured if it is started, else where its engine is."""
        return self.spec.placements if isinstance(self.state, Cold | Failed) else (self.placement,)

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
        return bool(self.queue or self.frozen)

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
    def leaves_at(self) -> Seconds:
        """When it leaves the GPU if no request comes; infinity where it stays, or is not idle."""
        return self.idle_since + self.spec.idle_seconds if self.is_idle else math.inf

    @property
    def is_idle(self) -> bool:
        """Serving, with nothing in flight and nothing queued."""
        return isinstance(self.state, Serving) and not self.in_flight and not self.queue
