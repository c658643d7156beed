"""Drives the production scheduler over a trace on virtual time, in place of llmux's runtime."""

import heapq
import itertools
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from llmux.core import actions, events
from llmux.core.identifiers import InstanceId, Seconds
from llmux.core.model import Model
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler
from llmux.core.states import Serving, State
from llmux.errors import Overloaded
from llmux.simulation.occupancy import LeaseTimes, Occupancy, ReadAheadFigures, SwitchCauses
from llmux.simulation.on_time import Progress
from llmux.simulation.residency import OFF_GPU, Phase, Timeline, phase_of
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.costs import MeasuredSwitches, SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed, VirtualEngine
from llmux.simulation.virtual.leases import PlannedLease, VirtualLeases
from llmux.simulation.virtual.preparation import Preparation, evicted, prepare
from llmux.simulation.virtual.read_ahead import ReadAheadLimits, VirtualPrefetcher

PROGRESS_EVERY = 4096
NOTHING_PREPARED = Preparation()
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
    refused: Sequence[bool]
    """Whether it was refused when it came, because it would have had to wait for too long."""
    switches: Sequence[actions.SwitchDone]
    timeline: Timeline
    occupancy: Occupancy
    causes: SwitchCauses
    host_memory: Sequence[tuple[Seconds, int]]
    """What sleepers held of host memory from when on, in MiB, as far as it was estimated."""
    steps_down: int
    leases: Sequence[LeaseTimes]
    read_ahead: ReadAheadFigures | None
    end: Seconds
    progress: Mapping[int, Sequence[Progress]]
    """Of each request that was frozen after its first token: how far its answer was at each freeze, and each time that
    it went on."""


@dataclass(frozen=True, slots=True)
class _EngineAwake:
    """An engine is on the GPU again and recomputes its frozen requests; its wake is done only after the canary."""

    instance: InstanceId


@dataclass(frozen=True, slots=True)
class _FilesRead:
    """What was being read ahead may have been read."""


_Outcome: TypeAlias = events.Event | _EngineAwake | _FilesRead


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
        "recompute_share",
        "record",
        "state",
    )

    def __init__(self, record: Model, cost: SwitchCost, speed: EngineSpeed) -> None:
        self.name = record.name
        self.record = record
        self.state: State = record.state
        """The state of ``record`` that ``phase`` belongs to."""
        self.engine = VirtualEngine(speed, record.spec.max_in_flight)
        share = speed.recompute_share
        self.recompute_share = cost.recompute_share if share is None else share
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

    def freeze(self, request: int, now: Seconds) -> int:
        """Returns how many tokens the request has yet to decode."""
        left = self.frozen[request] = self.engine.remove(request, now)
        return left

    def give_up(self, request: int, now: Seconds) -> None:
        if self.frozen.pop(request, None) is None and self.held_back.pop(request, None) is not True:
            self.engine.remove(request, now)
            self._ask_canary(now)

    def resume(self, requests: Sequence[TrafficRequest], now: Seconds) -> None:
        """Recompute the prompts and the output so far of all frozen requests, then ask the canary."""
        for number, left in self.frozen.items():
            request = requests[number]
            decoded = request.output_tokens - left
            # A prompt whose prefill had not ended is prefilled from the beginning.
            share = self.recompute_share if decoded else 1.0
            self.engine.admit(number, share * (request.prompt_tokens + decoded), left, now)
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
        preparation: Preparation = NOTHING_PREPARED,
        measured: MeasuredSwitches | None = None,
        progress: Callable[[float], None] | None = None,
        leases: Sequence[PlannedLease] = (),
        read_ahead: ReadAheadLimits | None = None,
    ) -> None:
        """``progress`` is called with the number of arrivals. Raises LeaseImpossible."""
        self._scheduler = scheduler
        self._trace = requests
        self._progress = progress
        speed = speed or EngineSpeed()
        measured = measured or MeasuredSwitches()
        self._evictions, self._wakes = iter(measured.evictions), iter(measured.wakes)
        self._canary_seconds = canary_seconds(speed)
        prepare(scheduler, costs, preparation)
        self._default_model = preparation.default_model
        self._models = {model.name: VirtualModel(model, costs[model.name], speed) for model in scheduler.models}
        self._on_gpu = [model for model in self._models.values() if isinstance(model.record.state, Serving)]
        self._arrived = 0
        self._open = len(requests)
        self._now: Seconds = 0.0
        self._progressed_at: Seconds = 0.0
        self._timer_at: Seconds = math.inf
        self._outcome_at: Seconds = math.inf
        self._outcomes: list[tuple[Seconds, int, _Outcome]] = []
        """A heap of what wakes and evictions under way result in; the number keeps their order at equal times."""
        self._numbers = itertools.count()
        self._requests: dict[int, Request] = {}
        """Requests that have arrived and not ended."""
        self._switches: list[actions.SwitchDone] = []
        self._left_for_another: dict[str, bool] = {}
        """By model that has left the GPU: whether another one needed its memory."""
        self._causes = SwitchCauses()
        self._host_memory = [(0.0, scheduler.host_mib)]
        self._steps_down = 0
        self._occupancy = Occupancy({gpu: total for gpu, (total, _) in scheduler.gpu_memory().items()})
        for model in self._models.values():
            self._occupancy.hold(model.name, model.record.held, 0.0)
        for model in self._on_gpu:
            model.update(0.0)
        self._leases = VirtualLeases(scheduler, self._occupancy, leases, self._schedule) if leases else None
        self._prefetcher = None if read_ahead is None else VirtualPrefetcher(scheduler, costs, read_ahead)
        self._read_at: Seconds = math.inf
        """When what is being read ahead will have been, as far as that is among the outcomes."""
        nothing = [math.nan] * len(requests)
        self._admitted_at, self._first_token_at, self._ended_at = (array("d", nothing) for _ in range(3))
        self._served = [False] * len(requests)
        self._refused = [False] * len(requests)
        self._progress_of: dict[int, list[Progress]] = {}

    def run(self) -> RunResult:
        """Let virtual time pass until every request has ended."""
        trace, count = self._trace, len(self._trace)
        if self._default_model is not None:
            self._handle(events.DefaultChanged(self._default_model))
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
            self._served,
            self._refused,
            self._switches,
            Timeline({name: model.phases for name, model in self._models.items()}),
            self._occupancy,
            self._causes,
            self._host_memory,
            self._steps_down,
            () if self._leases is None else self._leases.times(self._now),
            None if self._prefetcher is None else self._prefetcher.figures,
            self._now,
            self._progress_of,
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
        elif not has_ended:
            self._progress_of[number].append(Progress(self._now, self._progress_of[number][-1].tokens + 1))
        if has_ended:
            self._ended_at[number] = self._progressed_at = self._now
            self._served[number] = True
            self._open -= 1

    def _deliver(self) -> None:
        """Deliver the timer or the outcome that is due."""
        now = self._now = max(self._now, min(self._timer_at, self._outcome_at))
        if self._leases is not None and self._leases.are_held():
            self._progressed_at = now
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
            elif isinstance(outcome, _FilesRead):
                self._look_ahead()
            else:
                self._handle(outcome)

    def _handle(self, event: events.Event) -> None:
        now, leases = self._now, self._leases
        for action in self._scheduler.handle(event, now):
            if leases is None or not leases.perform(action, now):
                self._perform(action)
        has_left = False
        for model in self._on_gpu:
            if model.record.state is not model.state:
                self._update(model)
                has_left |= model.phase in OFF_GPU
        if has_left:
            self._on_gpu = [model for model in self._on_gpu if model.phase not in OFF_GPU]
        if isinstance(event, events.EvictDone) and event.instance.model in self._models:
            # A sleeper that went deeper asleep, or was stopped, is not among those on the GPU.
            self._update(self._models[event.instance.model])
        if self._prefetcher is not None:
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Have the prefetcher look at what the scheduler has decided."""
        assert self._prefetcher is not None
        at = self._prefetcher.look(self._now)
        if at != self._read_at:
            self._read_at = at
            if at != math.inf:
                self._schedule(at - self._now, _FilesRead())

    def _update(self, model: VirtualModel) -> None:
        """Take over what the scheduler has decided about a model."""
        model.update(self._now)
        self._occupancy.hold(model.name, model.record.held, self._now)
        if (host_mib := self._scheduler.host_mib) != self._host_memory[-1][1]:
            self._host_memory.append((self._now, host_mib))

    def _perform(self, action: actions.Action) -> None:  # noqa: C901 - a dispatch table
        match action:
            case actions.Admit(request, instance):
                self._begin(request.id, self._models[instance.model])
            case actions.SetTimer(at):
                self._timer_at = at
            case actions.Reject(request, error):
                self._refused[request.id] = isinstance(error, Overloaded)
                self._give_up(request.id)
            case actions.Revoke(request, _):
                self._models[request.model].give_up(request.id, self._now)
                self._give_up(request.id)
            case actions.Freeze(request):
                self._freeze(request.id, self._models[request.model])
            case actions.Hold():
                pass  # Nothing is relayed while a model is waking.
            case actions.SteppedDown():
                self._steps_down += 1
            case actions.Thaw(request):
                self._thaw(request)
            case actions.Wake():
                self._wake(action)
            case actions.Evict():
                self._evict(action)
            case actions.SwitchDone():
                self._switched(action)
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

    def _switched(self, report: actions.SwitchDone) -> None:
        self._switches.append(report)
        causes = self._causes
        match self._left_for_another.get(report.model):
            case None:
                self._causes = replace(causes, first=causes.first + 1)
            case True:
                self._causes = replace(causes, forced=causes.forced + 1)
            case False:
                self._causes = replace(causes, unforced=causes.unforced + 1)

    def _freeze(self, number: int, model: VirtualModel) -> None:
        tokens = self._trace[number].output_tokens - model.freeze(number, self._now)
        if not math.isnan(self._first_token_at[number]):
            self._progress_of.setdefault(number, []).append(Progress(self._now, tokens))

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
        seconds = model.cost.coming(action.asleep)
        if self._prefetcher is not None:
            seconds -= self._prefetcher.wake_begins(model.name, action.asleep, self._now)
        if action.asleep is None:
            self._schedule(seconds, done)
            return
        seconds = next(self._wakes, seconds)
        if model.frozen:
            self._schedule(max(0.0, seconds - self._canary_seconds), _EngineAwake(action.instance))
        else:
            self._schedule(seconds, done)

    def _evict(self, action: actions.Evict) -> None:
        model = self._models[action.instance.model]
        if model.phase not in OFF_GPU:
            self._left_for_another[model.name] = self._scheduler.leaving_for(model.name) is not None
        self._schedule(next(self._evictions, model.cost.evict), evicted(action, model.cost))

    def _schedule(self, seconds: Seconds, outcome: _Outcome) -> None:
        heapq.heappush(self._outcomes, (self._now + seconds, next(self._numbers), outcome))
        self._outcome_at = self._outcomes[0][0]
