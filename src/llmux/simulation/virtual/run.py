"""Drives the production scheduler over a trace on virtual time, in place of llmux's runtime."""

import heapq
import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from llmux.core import actions, events
from llmux.core.identifiers import InstanceId, Seconds
from llmux.core.model import Model
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler
from llmux.core.states import Asleep, Cold, Serving, State
from llmux.simulation.residency import OFF_GPU, Phase, Timeline, phase_of
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.costs import MeasuredSwitches, SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed, VirtualEngine

PROGRESS_EVERY = 4096
STANDSTILL_SECONDS: Seconds = 21_600.0
"""If no request arrives or ends for this long, the remaining ones never will."""

CANARY = -1
"""The canary's number, in place of a request's."""
CANARY_PROMPT_TOKENS, CANARY_OUTPUT_TOKENS = 6, 4


def canary_seconds(speed: EngineSpeed) -> Seconds:
    """Duration of the canary on an engine without frozen requests, which is a part of the wake's cost."""
    return CANARY_PROMPT_TOKENS / speed.prefill + (CANARY_OUTPUT_TOKENS - 1) / speed.decode_alone


@dataclass(frozen=True, slots=True)
class RunResult:
    """The times of every request, in the trace's order; NaN for what did not happen."""

    admitted_at: Sequence[float]
    first_token_at: Sequence[float]
    ended_at: Sequence[float]
    """When the last token was out, or the request was given up."""
    served: Sequence[bool]
    switches: Sequence[actions.SwitchDone]
    timeline: Timeline
    end: Seconds


@dataclass(frozen=True, slots=True)
class _EngineAwake:
    """An engine is on the GPU again and recomputes its frozen requests; its wake is done only after the canary."""

    instance: InstanceId


class VirtualModel:
    """One model in a virtual run: its engine, its frozen requests, and its phases so far."""

    __slots__ = (
        "_canary_is_due",
        "cost",
        "engine",
        "frozen",
        "held_back",
        "name",
        "phase",
        "phases",
        "record",
        "state",
    )

    def __init__(self, record: Model, cost: SwitchCost, speed: EngineSpeed) -> None:
        self.name = record.name
        self.record = record
        self.state: State = record.state
        """The state of ``record`` that ``phase`` belongs to."""
        self.engine = VirtualEngine(speed, record.spec.max_in_flight)
        self.cost = cost
        self.frozen: dict[int, int] = {}
        """By frozen request: how many tokens it has yet to decode."""
        self.held_back: dict[int, bool] = {}
        """Requests whose first token, or (true) last one, their clients get only when the wake is done."""
        self.phase = Phase.NOT_STARTED
        self.phases: list[tuple[Seconds, Phase]] = []
        self._canary_is_due = False

    def enter(self, phase: Phase, now: Seconds) -> None:
        if phase is not self.phase:
            self.phase = phase
            self.phases.append((now, phase))

    def update(self, now: Seconds) -> None:
        """Take over the scheduler's state of the model."""
        self.state = self.record.state
        self.enter(phase_of(self.state, is_busy=not self.engine.is_idle), now)

    def freeze(self, request: int, now: Seconds) -> None:
        self.frozen[request] = self.engine.remove(request, now)

    def give_up(self, request: int, now: Seconds) -> None:
        if self.frozen.pop(request, None) is None and self.held_back.pop(request, None) is not True:
            self.engine.remove(request, now)
            self._ask_canary(now)

    def resume(self, requests: Sequence[TrafficRequest], now: Seconds) -> None:
        """Recompute the prompts and the output so far of all frozen requests, then ask the canary."""
        for number, left in self.frozen.items():
            request = requests[number]
            self.engine.admit(number, request.prompt_tokens + request.output_tokens - left, left, now)
        self.frozen.clear()
        self._canary_is_due = True
        self._ask_canary(now)

    def hold_back(self, request: int, has_ended: bool, now: Seconds) -> bool:
        """Keep a token of an engine whose wake is not done; returns whether it is the canary's last, which ends it."""
        if request == CANARY:
            return has_ended
        self.held_back[request] = has_ended
        if has_ended:
            self._ask_canary(now)
        return False

    def _ask_canary(self, now: Seconds) -> None:
        """Like any request, the canary waits for a slot in the batch."""
        if self._canary_is_due and self.engine.has_slot:
            self._canary_is_due = False
            self.engine.admit(CANARY, CANARY_PROMPT_TOKENS, CANARY_OUTPUT_TOKENS, now)


class VirtualRun:
    """One run of one scheduler over one trace; ``run`` may be called once."""

    def __init__(
        self,
        scheduler: Scheduler,
        requests: Sequence[TrafficRequest],
        costs: Mapping[str, SwitchCost],
        speed: EngineSpeed | None = None,
        *,
        warm: bool = False,
        measured: MeasuredSwitches | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """``warm``: with llmux's warm-up before the trace. ``progress`` is called with the number of arrivals."""
        self._scheduler = scheduler
        self._trace = requests
        self._progress = progress
        speed = speed or EngineSpeed()
        measured = measured or MeasuredSwitches()
        self._evictions, self._wakes = iter(measured.evictions), iter(measured.wakes)
        self._canary_seconds = canary_seconds(speed)
        self._models = {model.name: VirtualModel(model, costs[model.name], speed) for model in scheduler.models}
        if warm:
            warm_up(scheduler, costs)
        self._on_gpu = [model for model in self._models.values() if isinstance(model.record.state, Serving)]
        self._arrived = 0
        self._open = len(requests)
        self._now: Seconds = 0.0
        self._progressed_at: Seconds = 0.0
        self._timer_at: Seconds = math.inf
        self._outcome_at: Seconds = math.inf
        self._outcomes: list[tuple[Seconds, int, events.Event | _EngineAwake]] = []
        """A heap of what wakes and evictions under way result in; the number keeps their order at equal times."""
        self._numbers = itertools.count()
        self._requests: dict[int, Request] = {}
        """Requests that have arrived and not ended."""
        self._switches: list[actions.SwitchDone] = []
        nothing = [math.nan] * len(requests)
        self._admitted_at, self._first_token_at, self._ended_at = (array("d", nothing) for _ in range(3))
        self._served = bytearray(len(requests))

    def run(self) -> RunResult:
        """Let virtual time pass until every request has ended."""
        trace, count = self._trace, len(self._trace)
        arrives_at = trace[0].at_seconds if trace else math.inf
        while self._open:
            at, earliest = arrives_at, None
            for model in self._on_gpu:
                if model.engine.next_at < at:
                    at, earliest = model.engine.next_at, model
            if self._timer_at < at or self._outcome_at < at:
                self._deliver()
            elif earliest is not None:
                self._advance(earliest)
            elif at < math.inf:
                self._arrive()
                arrives_at = trace[self._arrived].at_seconds if self._arrived < count else math.inf
            else:
                raise RuntimeError(f"{self._open} requests wait, and nothing will ever happen")
        return RunResult(
            self._admitted_at,
            self._first_token_at,
            self._ended_at,
            [bool(served) for served in self._served],
            self._switches,
            Timeline({name: model.phases for name, model in self._models.items()}),
            self._now,
        )

    def _arrive(self) -> None:
        number = self._arrived
        traced = self._trace[number]
        self._arrived = number + 1
        now = self._now = self._progressed_at = max(self._now, traced.at_seconds)
        request = self._requests[number] = Request(number, traced.model, streams=True)
        if self._scheduler.admit(request, now) is None:
            self._handle(events.RequestArrived(request))
        else:
            self._begin(number, self._models[traced.model])
        if self._progress is not None and not number % PROGRESS_EVERY:
            self._progress(number)

    def _begin(self, number: int, model: VirtualModel) -> None:
        traced, now = self._trace[number], self._now
        self._admitted_at[number] = now
        if model.engine.is_idle and model.phase is Phase.IDLE:
            model.enter(Phase.SERVING, now)
        model.engine.admit(number, traced.prompt_tokens, traced.output_tokens, now)

    def _advance(self, model: VirtualModel) -> None:
        now = self._now = max(self._now, model.engine.next_at)
        number, has_ended = model.engine.advance()
        if model.phase is Phase.WAKING:
            if model.hold_back(number, has_ended, now):
                self._handle(events.WakeDone(model.record.instance, can_freeze=True))
            return
        self._relay(number, has_ended)
        if not has_ended:
            return
        request = self._requests.pop(number)
        if not self._scheduler.done(request, True, now):
            self._handle(events.RequestDone(request))
        if model.engine.is_idle and model.phase is Phase.SERVING:
            model.enter(Phase.IDLE, now)

    def _relay(self, number: int, has_ended: bool) -> None:
        """Pass the first or the last token on to the client."""
        if math.isnan(self._first_token_at[number]):
            self._first_token_at[number] = self._now
            self._scheduler.first_token(self._requests[number], self._now)
        if has_ended:
            self._ended_at[number] = self._progressed_at = self._now
            self._served[number] = True
            self._open -= 1

    def _deliver(self) -> None:
        """Deliver the timer or the outcome that is due."""
        now = self._now = max(self._now, min(self._timer_at, self._outcome_at))
        if now > self._progressed_at + STANDSTILL_SECONDS and self._arrived == len(self._trace):
            self._stand_still()
            return
        if self._timer_at <= now:
            self._timer_at = math.inf
            self._handle(events.TimerFired())
        else:
            outcome = heapq.heappop(self._outcomes)[2]
            self._outcome_at = self._outcomes[0][0] if self._outcomes else math.inf
            if isinstance(outcome, _EngineAwake):
                self._models[outcome.instance.model].resume(self._trace, now)
            else:
                self._handle(outcome)

    def _handle(self, event: events.Event) -> None:
        now = self._now
        for action in self._scheduler.handle(event, now):
            self._perform(action)
        has_left = False
        for model in self._on_gpu:
            if model.record.state is not model.state:
                model.update(now)
                has_left |= model.phase in OFF_GPU
        if has_left:
            self._on_gpu = [model for model in self._on_gpu if model.phase not in OFF_GPU]

    def _perform(self, action: actions.Action) -> None:
        match action:
            case actions.Admit(request, instance):
                self._begin(request.id, self._models[instance.model])
            case actions.SetTimer(at):
                self._timer_at = at
            case actions.Reject(request, _):
                self._give_up(request.id)
            case actions.Revoke(request, _):
                self._models[request.model].give_up(request.id, self._now)
                self._give_up(request.id)
            case actions.Freeze(request):
                self._models[request.model].freeze(request.id, self._now)
            case actions.Hold():
                pass  # Nothing is relayed while a model is waking.
            case actions.Thaw(request):
                self._thaw(request)
            case actions.Wake():
                self._wake(action)
            case actions.Evict():
                self._evict(action)
            case actions.SwitchDone():
                self._switches.append(action)
            case (
                actions.AbortWake()
                | actions.AbortEvict()
                | actions.CommandDone()
                | actions.SwitchFailed()
                | actions.ShutdownDone()
            ):
                raise RuntimeError(f"{action} in a simulation, which has no operator and in which no engine fails")
            case _:
                assert_never(action)

    def _thaw(self, request: Request) -> None:
        has_ended = self._models[request.model].held_back.pop(request.id, None)
        if has_ended is not None:
            self._relay(request.id, has_ended)
        if has_ended:
            del self._requests[request.id]
            self._schedule(0.0, events.RequestDone(request))

    def _give_up(self, number: int) -> None:
        self._requests.pop(number, None)
        self._ended_at[number] = self._progressed_at = self._now
        self._open -= 1

    def _stand_still(self) -> None:
        """Give up all open requests: models alternate, and none stays long enough to complete anything."""
        for number, ended_at in enumerate(self._ended_at):
            if math.isnan(ended_at):
                self._give_up(number)

    def _wake(self, action: actions.Wake) -> None:
        model = self._models[action.instance.model]
        self._on_gpu.append(model)
        done = events.WakeDone(action.instance, can_freeze=True)
        if action.asleep is None:
            self._schedule(model.cost.cold, done)
            return
        seconds = next(self._wakes, model.cost.wake)
        if model.frozen:
            self._schedule(max(0.0, seconds - self._canary_seconds), _EngineAwake(action.instance))
        else:
            self._schedule(seconds, done)

    def _evict(self, action: actions.Evict) -> None:
        model = self._models[action.instance.model]
        self._schedule(next(self._evictions, model.cost.evict), _evicted(action))

    def _schedule(self, seconds: Seconds, outcome: events.Event | _EngineAwake) -> None:
        heapq.heappush(self._outcomes, (self._now + seconds, next(self._numbers), outcome))
        self._outcome_at = self._outcomes[0][0]


def _evicted(action: actions.Evict) -> events.EvictDone:
    return events.EvictDone(action.instance, Asleep(action.eviction) if action.eviction.keeps_process else Cold())


def warm_up(scheduler: Scheduler, costs: Mapping[str, SwitchCost]) -> None:
    """Do what llmux's warm-up does: start and evict each model that no image restores, so that the last ends at 0."""
    names = [model.name for model in scheduler.models if isinstance(model.state, Cold)]
    now: Seconds = -sum(costs[name].cold + costs[name].evict for name in names)
    numbers = itertools.count(1)
    for name in names:
        for event in (events.WakeRequested(next(numbers), name), events.SleepRequested(next(numbers), name, None)):
            now = _handle_to_end(scheduler, event, costs, now)


def _handle_to_end(scheduler: Scheduler, event: events.Event, costs: Mapping[str, SwitchCost], now: Seconds) -> Seconds:
    """Handle an event and the outcomes of all actions that follow from it; returns the time at the end."""
    pending: deque[actions.Action] = deque(scheduler.handle(event, now))
    while pending:
        match pending.popleft():
            case actions.Wake(instance):
                # The sum of the steps may exceed the total before it by rounding, and the trace begins at 0.
                now = min(0.0, now + costs[instance.model].cold)
                pending += scheduler.handle(events.WakeDone(instance, can_freeze=True), now)
            case actions.Evict() as action:
                now = min(0.0, now + costs[action.instance.model].evict)
                pending += scheduler.handle(_evicted(action), now)
            case _:
                pass
    return now
