"""The scheduler's record of one model: its state, its queue, and what is in flight."""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NamedTuple

from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import NOTHING, Footprint, InstanceId, Seconds
from llmux.core.load import LoadEstimator
from llmux.core.priority import Lanes, Priority
from llmux.core.settings import ModelSpec
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking

HISTORY_LENGTH = 64


class Waiting(NamedTuple):
    """A queued request. ``arrived_at`` orders it; ``deadline`` is when it has waited too long."""

    arrived_at: Seconds
    deadline: Seconds
    attempts: int
    size_bytes: int
    priority: Priority = Priority.INTERACTIVE
    streams: bool = True


@dataclass(frozen=True, slots=True)
class Frozen:
    """A request that is suspended with its engine, ``since`` when; at its ``deadline`` it has been so for too long."""

    since: Seconds
    deadline: Seconds


@dataclass(frozen=True, slots=True)
class Transition:
    """One transition in a model's history."""

    at: Seconds
    event: str
    before: State
    after: State


class Model:
    """Everything the scheduler knows of one model. Only ``World`` changes ``state`` and ``held``."""

    __slots__ = (
        "awaiting_first_token",
        "can_freeze",
        "eviction_override",
        "failures",
        "frozen",
        "generation",
        "held",
        "history",
        "idle_since",
        "in_flight",
        "instance",
        "lanes",
        "last_served_at",
        "max_wait_seconds",
        "name",
        "retried_after_oom",
        "spec",
        "state",
        "traffic",
        "unfaithful",
        "waiting",
        "wake_seconds",
    )

    def __init__(self, spec: ModelSpec, max_wait_seconds: Seconds) -> None:
        self.spec = spec
        self.name = spec.name
        """The name clients ask for."""
        self.max_wait_seconds = max_wait_seconds if spec.max_wait_seconds is None else spec.max_wait_seconds
        self.state: State = Cold() if spec.begins_asleep is None else Asleep(spec.begins_asleep)
        self.held: Footprint = self.footprint(self.state)
        """The GPU memory it holds now."""
        self.generation = 0
        self.instance = InstanceId(spec.name, 0)
        """The model's present engine, or its last one."""
        self.waiting: OrderedDict[int, Waiting] = OrderedDict()
        """All that wait, in the order of arrival."""
        self.lanes = Lanes(self.max_wait_seconds)
        """The same by class, in the order of admission."""
        self.in_flight: set[int] = set()
        self.awaiting_first_token: set[int] = set()
        """Which of those in flight or frozen, if they stream, have not begun to be answered."""
        self.frozen: OrderedDict[int, Frozen] = OrderedDict()
        """What was in flight when the engine left, and goes on when it is back."""
        self.can_freeze = False
        """Whether the present engine can suspend its requests."""
        self.wake_seconds: Seconds = 0.0
        """How long its last way back from sleep took, with all that its frozen requests made the engine read again."""
        self.unfaithful: set[Eviction] = set()
        """Evictions after which the model was found to say something else than before."""
        self.eviction_override: Eviction | None = None
        self.failures = 0
        self.retried_after_oom = False
        self.idle_since: Seconds = 0.0
        self.last_served_at: Seconds = float("-inf")
        self.traffic = LoadEstimator()
        self.history: deque[Transition] = deque(maxlen=HISTORY_LENGTH)

    def begin(self, request: int, *, streams: bool, now: Seconds) -> None:
        """A request goes to the engine."""
        self.pass_time(now)
        self.in_flight.add(request)
        if streams:
            self.awaiting_first_token.add(request)

    def answer(self, request: int, now: Seconds) -> None:
        """A request's answer begins."""
        if request in self.awaiting_first_token:
            if request in self.in_flight:
                self.pass_time(now)
                self.traffic.answered()
            self.awaiting_first_token.discard(request)

    def end(self, request: int, now: Seconds) -> None:
        """A request that was in flight is over."""
        self.pass_time(now)
        self.traffic.ended()
        self.in_flight.discard(request)
        self.awaiting_first_token.discard(request)
        self.idle_since = now

    def look(self, now: Seconds) -> None:
        """Bring up to date what is learnt of the requests."""
        self.pass_time(now)
        self.traffic.look(now)

    def pass_time(self, now: Seconds) -> None:
        """Account for the time until now; called before it changes who is in flight, or whether anybody waits."""
        serves = type(self.state) is Serving
        if serves or type(self.state) is Draining:
            # What waits for a model that drains is not what its engine is slow with.
            is_behind = bool(self.awaiting_first_token) or (serves and bool(self.waiting))
            self.traffic.pass_time(len(self.in_flight), is_behind, now)

    def begin_generation(self) -> None:
        """A new engine: what is still heard of the last one is not about it."""
        self.generation += 1
        self.instance = InstanceId(self.spec.name, self.generation)

    @property
    def eviction(self) -> Eviction:
        """How the model leaves the GPU: the operator's override, else the configured one, unless that changes it."""
        chosen = self.eviction_override or self.spec.eviction
        return STOP if self.unfaithful and chosen in self.unfaithful else chosen

    def footprint(self, state: State) -> Footprint:
        """The GPU memory the model holds in a state."""
        match state:
            case Asleep(eviction=asleep) | Evicting(asleep=Eviction() as asleep) | Stuck(asleep=Eviction() as asleep):
                return self.spec.residue(asleep)
            case Waking() | Serving() | Draining() | Evicting() | Stuck():
                return self.spec.awake
            case _:
                return NOTHING

    @property
    def is_asked_for(self) -> bool:
        """Whether requests wait for the model, queued or frozen."""
        return bool(self.waiting or self.frozen)

    @property
    def head_since(self) -> Seconds | None:
        """Since when the longest-waiting request waits, queued or frozen; None if nothing does."""
        queued = next(iter(self.waiting.values())).arrived_at if self.waiting else None
        if not self.frozen:
            return queued
        frozen = next(iter(self.frozen.values())).since
        return frozen if queued is None else min(queued, frozen)

    @property
    def has_room(self) -> bool:
        """Whether one more request may be in flight."""
        return len(self.in_flight) < self.spec.max_in_flight

    def can_be_woken(self, now: Seconds) -> bool:
        """Whether a wake may be started from the present state."""
        match self.state:
            case Cold() | Asleep():
                return True
            case Failed(retry_at=retry_at):
                return retry_at <= now
            case _:
                return False

    @property
    def is_idle(self) -> bool:
        """Serving, with nothing to do."""
        return isinstance(self.state, Serving) and not self.in_flight and not self.waiting
