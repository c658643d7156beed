"""Drives the production scheduler over a trace on virtual time, in the runtime's place."""

import heapq
import itertools
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

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
    SwitchDone,
    SwitchFailed,
    Thaw,
    Wake,
)
from llmux.core.events import Event, EvictDone, RequestArrived, RequestDone, TimerFired, WakeDone
from llmux.core.identifiers import InstanceId, Seconds
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler
from llmux.core.states import Asleep, Cold, Serving
from llmux.simulation.virtual.costs import MeasuredSwitches, SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.place import Place, question_seconds
from llmux.simulation.virtual.timeline import Phase, Timeline
from llmux.simulation.virtual.warmup import warm_up
from llmux.simulation.workload.call import TracedCall

PROGRESS_EVERY = 4096
STANDSTILL_SECONDS: Seconds = 21_600.0
"""If nothing came and nothing ended for so long, what is left never will."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of every call, by its place in the trace; NaN where it did not come to that."""

    admitted_at: Sequence[float]
    first_token_at: Sequence[float]
    ended_at: Sequence[float]
    """When the last token was out, or when the request was given up."""
    served: Sequence[bool]
    switches: Sequence[SwitchDone]
    timeline: Timeline
    end: Seconds


@dataclass(frozen=True, slots=True)
class _Awake:
    """An engine is on the GPU again, and goes on with what was frozen in it before anybody is told."""

    instance: InstanceId


class VirtualRun:
    """One run of one scheduler over one trace; ``run`` may be called once."""

    def __init__(
        self,
        scheduler: Scheduler,
        calls: Sequence[TracedCall],
        costs: Mapping[str, SwitchCost],
        speed: EngineSpeed | None = None,
        *,
        warm: bool = False,
        measured: MeasuredSwitches | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """``warm``: with a warm-up before the trace begins. ``progress`` is told how many calls have come."""
        self._scheduler = scheduler
        self._calls = calls
        self._progress = progress
        speed = speed or EngineSpeed()
        measured = measured or MeasuredSwitches()
        self._evictions, self._wakes = iter(measured.evictions), iter(measured.wakes)
        self._question_seconds = question_seconds(speed)
        self._places = {model.name: Place(model, costs[model.name], speed) for model in scheduler.models}
        if warm:
            warm_up(scheduler, costs)
        self._on_gpu = [place for place in self._places.values() if isinstance(place.record.state, Serving)]
        self._came = 0
        self._open = len(calls)
        self._now: Seconds = 0.0
        self._moved_at: Seconds = 0.0
        self._timer_at: Seconds = math.inf
        self._outcome_at: Seconds = math.inf
        self._outcomes: list[tuple[Seconds, int, Event | _Awake]] = []
        self._numbers = itertools.count()
        self._requests: dict[int, Request] = {}
        self._switches: list[SwitchDone] = []
        nothing = [math.nan] * len(calls)
        self._admitted_at, self._first_token_at, self._ended_at = (array("d", nothing) for _ in range(3))
        self._served = bytearray(len(calls))

    def run(self) -> Outcome:
        """Let virtual time pass until every request has ended."""
        calls, count = self._calls, len(self._calls)
        arrives_at = calls[0].at_seconds if calls else math.inf
        while self._open:
            at, busiest = arrives_at, None
            for place in self._on_gpu:
                if place.engine.next_at < at:
                    at, busiest = place.engine.next_at, place
            if self._timer_at < at or self._outcome_at < at:
                self._settle()
            elif busiest is not None:
                self._advance(busiest)
            elif at < math.inf:
                self._arrive()
                arrives_at = calls[self._came].at_seconds if self._came < count else math.inf
            else:
                raise RuntimeError(f"{self._open} requests wait, and nothing will ever happen")
        return Outcome(
            self._admitted_at,
            self._first_token_at,
            self._ended_at,
            [bool(served) for served in self._served],
            self._switches,
            Timeline({name: place.phases for name, place in self._places.items()}),
            self._now,
        )

    def _arrive(self) -> None:
        request = self._came
        call = self._calls[request]
        self._came = request + 1
        now = self._now = self._moved_at = max(self._now, call.at_seconds)
        record = self._requests[request] = Request(request, call.model, streams=True)
        if self._scheduler.admit(record, now) is None:
            self._handle(RequestArrived(record))
        else:
            self._begin(request, self._places[call.model])
        if self._progress is not None and not request % PROGRESS_EVERY:
            self._progress(request)

    def _begin(self, request: int, place: Place) -> None:
        call, now = self._calls[request], self._now
        self._admitted_at[request] = now
        if place.engine.is_idle and place.phase is Phase.IDLE:
            place.enter(Phase.SERVING, now)
        place.engine.admit(request, call.prompt_tokens, call.output_tokens, now)

    def _advance(self, place: Place) -> None:
        now = self._now = max(self._now, place.engine.next_at)
        request, has_ended = place.engine.advance()
        if place.phase is Phase.WAKING:
            if place.hold_back(request, has_ended, now):
                self._handle(WakeDone(place.record.instance, can_freeze=True))
            return
        self._hear(request, has_ended)
        if not has_ended:
            return
        record = self._requests[request]
        if not self._scheduler.done(record, True, now):
            self._handle(RequestDone(record))
        if place.engine.is_idle and place.phase is Phase.SERVING:
            place.enter(Phase.IDLE, now)

    def _hear(self, request: int, has_ended: bool) -> None:
        """The client gets the first token, or the last one."""
        if math.isnan(self._first_token_at[request]):
            self._first_token_at[request] = self._now
            self._scheduler.first_token(self._requests[request], self._now)
        if has_ended:
            self._ended_at[request] = self._moved_at = self._now
            self._served[request] = True
            self._open -= 1

    def _settle(self) -> None:
        """Deliver the timer or the outcome that is due."""
        now = self._now = max(self._now, min(self._timer_at, self._outcome_at))
        if now > self._moved_at + STANDSTILL_SECONDS and self._came == len(self._calls):
            self._stand_still()
            return
        if self._timer_at <= now:
            self._timer_at = math.inf
            self._handle(TimerFired())
        else:
            outcome = heapq.heappop(self._outcomes)[2]
            self._outcome_at = self._outcomes[0][0] if self._outcomes else math.inf
            if isinstance(outcome, _Awake):
                self._places[outcome.instance.model].resume(self._calls, now)
            else:
                self._handle(outcome)

    def _handle(self, event: Event) -> None:
        now = self._now
        for action in self._scheduler.handle(event, now):
            self._perform(action)
        somebody_left = False
        for place in self._on_gpu:
            if place.record.state is not place.state:
                place.look(now)
                somebody_left |= place.phase is Phase.OFF
        if somebody_left:
            self._on_gpu = [place for place in self._on_gpu if place.phase is not Phase.OFF]

    def _perform(self, action: Action) -> None:
        match action:
            case Admit(request, instance):
                self._begin(request.id, self._places[instance.model])
            case SetTimer(at):
                self._timer_at = at
            case Reject(request, _):
                self._give_up(request.id)
            case Revoke(request, _):
                self._places[request.model].give_up(request.id, self._now)
                self._give_up(request.id)
            case Freeze(request):
                self._places[request.model].freeze(request.id, self._now)
            case Hold():
                pass
            case Thaw(request):
                self._thaw(request.id)
            case Wake():
                self._wake(action)
            case Evict():
                self._evict(action)
            case SwitchDone():
                self._switches.append(action)
            case AbortWake() | AbortEvict() | CommandDone() | SwitchFailed() | ShutdownDone():
                raise RuntimeError(f"{action} in a simulation, where nobody operates and no engine fails")
            case _:
                assert_never(action)

    def _place_of(self, request: int) -> Place:
        return self._places[self._calls[request].model]

    def _thaw(self, request: int) -> None:
        place = self._place_of(request)
        has_ended = place.held_back.pop(request, None)
        if has_ended is not None:
            self._hear(request, has_ended)
        if has_ended:
            self._await(0.0, RequestDone(self._requests[request]))

    def _give_up(self, request: int) -> None:
        self._ended_at[request] = self._moved_at = self._now
        self._open -= 1

    def _stand_still(self) -> None:
        """Give up whatever has not ended: models take turns, and none has the time to get anything done."""
        for request, ended_at in enumerate(self._ended_at):
            if math.isnan(ended_at):
                self._give_up(request)

    def _wake(self, action: Wake) -> None:
        place = self._places[action.instance.model]
        self._on_gpu.append(place)
        done = WakeDone(action.instance, can_freeze=True)
        if action.asleep is None:
            self._await(place.cost.cold, done)
            return
        seconds = next(self._wakes, place.cost.wake)
        if place.frozen:
            self._await(max(0.0, seconds - self._question_seconds), _Awake(action.instance))
        else:
            self._await(seconds, done)

    def _evict(self, action: Evict) -> None:
        place = self._places[action.instance.model]
        residency = Asleep(action.eviction) if action.eviction.keeps_process else Cold()
        self._await(next(self._evictions, place.cost.evict), EvictDone(action.instance, residency))

    def _await(self, seconds: Seconds, outcome: Event | _Awake) -> None:
        heapq.heappush(self._outcomes, (self._now + seconds, next(self._numbers), outcome))
        self._outcome_at = self._outcomes[0][0]
