"""Performs what the scheduler decides, and feeds every outcome back as exactly one event."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any, Protocol, assert_never

import structlog

from llmux.access import Upstream
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
    RequestAction,
    Revoke,
    SetTimer,
    ShutdownDone,
    SteppedDown,
    SwitchDone,
    SwitchFailed,
    Thaw,
    Wake,
)
from llmux.core.events import Event, EvictDone, InstanceExited, NeedMeasured, TimerFired, WakeDone
from llmux.core.eviction import Eviction
from llmux.core.gpu_lease import GpuLease
from llmux.core.identifiers import EVERY_GPU, GpuId, InstanceId
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Placement
from llmux.core.states import Asleep, Cold
from llmux.errors import CommandFailed, FailureReason
from llmux.instances.health import Health
from llmux.instances.outcomes import EvictOutcome, SeenMemory, WakeOutcome
from llmux.runtime.loop_clock import LoopClock

log = structlog.get_logger("llmux.controller")

INTERNAL_ERROR = "an internal error of llmux; its log has the details"

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Runs a coroutine as a task that the server owns."""


class GpuUser(Protocol):
    """What the controller needs of whatever comes onto the GPUs and leaves them: an engine, a GPU lease's program."""

    async def wake(self, devices: tuple[str, ...]) -> WakeOutcome:
        """Bring it onto the GPU. After an error or an exception its state is unknown, and ``end`` must follow.

        ``devices``: the GPUs of a cold start, as CUDA_VISIBLE_DEVICES names them; empty for all that llmux sees.
        """

    async def evict(self, eviction: Eviction, *, freeze: bool = False) -> EvictOutcome:
        """Take it off the GPU; ``freeze``: together with its requests, which are suspended."""

    async def end(self) -> None:
        """Kill what is left of it, and return when all of it is gone."""

    def interrupt(self, reason: str) -> None:
        """Fail a ``wake`` under way, or make an ``evict`` stop the engine: llmux is shutting down."""


class ManagedInstance(GpuUser, Protocol):
    """What the runtime needs of a model's engine."""

    @property
    def upstream(self) -> Upstream:
        """Where it serves requests."""

    @property
    def works_after_answering(self) -> bool:
        """Whether its work can go on when its answers have ended, so that ``has_work`` must be asked."""

    async def has_work(self) -> bool:
        """Whether it works on something. While it cannot tell and is not known to be dead, it is taken to."""

    async def check_health(self, timeout_seconds: float) -> Health:
        """Whether it is alive."""


class Requests(Protocol):
    """Where requests wait: the dispatcher. Where programs wait for GPU leases, which are requests to the scheduler."""

    def perform(self, action: RequestAction) -> None:
        """Carry out what the scheduler has decided about one request."""


class Observer(Protocol):
    """Counts switches: the metrics."""

    def switch_done(self, done: SwitchDone) -> None:
        """A model came onto the GPU."""

    def switch_failed(self, failed: SwitchFailed) -> None:
        """A model could not be brought onto the GPU."""

    def stepped_down(self, step: SteppedDown) -> None:
        """A model keeps less while it is off the GPU."""


class Watcher(Protocol):
    """Follows what becomes of models, and changes nothing. Both are called within ``feed``, and must be quick."""

    def wake_begins(self, model: str, asleep: Eviction | None) -> None:
        """A model's wake begins now: of one that left by ``asleep``, or a cold start."""

    def events_handled(self) -> None:
        """The scheduler has settled after one event or several."""


class Needs(Protocol):
    """Knows what the models need of the GPUs."""

    def engine_seen(
        self,
        model: str,
        seen: SeenMemory,
        gpus: Collection[GpuId],
        eviction: Eviction | None = None,
        *,
        has_answered: bool = False,
    ) -> tuple[Placement, ...] | None:
        """An engine was seen to hold this of these GPUs. Returns where its model may be from now on, if that changes.

        ``eviction``: how it left before its residue was read. ``has_answered``: it has completed a request.
        """


class Controller:
    """The only caller of the scheduler's ``handle``. Events raised while actions are performed are queued, in order."""

    def __init__(
        self,
        scheduler: Scheduler,
        spawn: Spawn,
        observer: Observer,
        clock: LoopClock | None = None,
        needs: Needs | None = None,
    ) -> None:
        """``needs``: None where models are not placed by memory."""
        self._scheduler = scheduler
        self._needs = needs
        self._spawn = spawn
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._clock = clock or LoopClock(self._loop)
        self.now = self._clock.now
        """The scheduler's clock."""
        self._instances: Mapping[str, GpuUser] = {}
        self._requests: Requests | None = None
        self._watcher: Watcher | None = None
        self._gpu_leases: Requests | None = None
        self._events: deque[Event] = deque()
        self._feeding = False
        self._timer: asyncio.TimerHandle | None = None
        self._commands: dict[int, asyncio.Future[None]] = {}
        self._command_number = 0
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._waking: set[str] = set()

    def attach(self, instances: Mapping[str, GpuUser], requests: Requests, gpu_leases: Requests | None = None) -> None:
        """Set what could not be passed to the constructor, because it is built with the controller."""
        self._instances = instances
        self._requests = requests
        self._gpu_leases = gpu_leases

    def watch(self, watcher: Watcher) -> None:
        """Tell it of wakes and of handled events from now on."""
        self._watcher = watcher

    def feed(self, event: Event) -> None:
        """Let the scheduler handle an event and perform what follows from it."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                for action in self._scheduler.handle(self._events.popleft(), self.now()):
                    self._perform(action)
        except Exception as error:
            # A scheduler that failed half way is in no known state: the server ends rather than guess.
            if not self._stopped.done():
                self._stopped.set_exception(error)
                self._stopped.exception()  # marks it as retrieved: it is raised here too
            raise
        finally:
            self._feeding = False
        if self._watcher is not None:
            self._watcher.events_handled()

    async def command(self, event_of: Callable[[int], Event]) -> None:
        """Feed an operator's command and wait for its end; raises CommandFailed. A caller that leaves stops nothing."""
        self._command_number += 1
        done = self._commands[self._command_number] = self._loop.create_future()
        self.feed(event_of(self._command_number))
        await asyncio.shield(done)

    async def wait_stopped(self) -> None:
        """Wait until every engine has been stopped after a shutdown; raises what broke the scheduler, if so."""
        await asyncio.shield(self._stopped)

    def engine_exited(self, model: str, reason: FailureReason) -> None:
        """An engine's root process has ended."""
        self.feed(InstanceExited(self._scheduler.model(model).instance, reason))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a piece of lifecycle work as the server's."""
        self._spawn(work)

    def _perform(self, action: Action) -> None:  # noqa: C901 - a dispatch table
        match action:
            case Admit() | Reject() | Revoke() | Freeze() | Hold() | Thaw():
                holders = self._gpu_leases if isinstance(action.request, GpuLease) else self._requests
                assert holders is not None
                holders.perform(action)
            case Wake(instance, asleep, gpus):
                self._waking.add(instance.model)
                if self._watcher is not None:
                    self._watcher.wake_begins(instance.model, asleep)
                self._spawn(self._wake(instance, gpus))
            case AbortWake(instance):
                if instance.model in self._waking:
                    self._instances[instance.model].interrupt("given up, because llmux is shutting down")
            case AbortEvict(instance):
                self._instances[instance.model].interrupt("given up, because llmux is shutting down")
            case Evict():
                self._spawn(self._evict(action))
            case SetTimer(at):
                self._set_timer(at)
            case CommandDone(command, error):
                self._command_done(command, error)
            case SwitchDone():
                log.info(
                    "switched",
                    model=action.model,
                    previous=action.previous or None,
                    cooldown_seconds=round(action.cooldown_seconds, 3),
                    drain_seconds=round(action.drain_seconds, 3),
                    sleep_seconds=round(action.sleep_seconds, 3),
                    wake_seconds=round(action.wake_seconds, 3),
                )
                self._observer.switch_done(action)
            case SwitchFailed():
                log.warning("could not bring the model onto the GPU", model=action.model, reason=action.reason)
                self._observer.switch_failed(action)
            case SteppedDown(model, before, eviction, reason):
                log.info(
                    "the model keeps less while it is off the GPU",
                    model=model,
                    before=str(before),
                    eviction=str(eviction),
                    reason=reason.value,
                )
                self._observer.stepped_down(action)
            case ShutdownDone():
                if not self._stopped.done():
                    self._stopped.set_result(None)
            case _:
                assert_never(action)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # If the process is stopped meanwhile, the timer is early, upon which the scheduler sets it again.
        self._timer = self._loop.call_at(self._clock.on_loop(at), self.feed, TimerFired())

    def _command_done(self, command: int, error: CommandFailed | None) -> None:
        done = self._commands.pop(command)
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
            done.exception()  # marks it as retrieved: the caller may have left

    async def _wake(self, instance: InstanceId, gpus: tuple[GpuId, ...]) -> None:
        engine = self._instances[instance.model]
        devices = () if gpus == (EVERY_GPU,) else tuple(gpu.uuid for gpu in gpus)
        try:
            outcome = await engine.wake(devices)
        except Exception as failure:
            log.exception("unexpected error while waking", model=instance.model)
            outcome = WakeOutcome(FailureReason(f"{type(failure).__name__}: {failure}", INTERNAL_ERROR))
        if outcome.error is not None:
            # Before the event: the scheduler may give the engine's memory away as soon as it knows of the failure.
            await engine.end()
        elif outcome.seen is not None:
            self._note_need(instance, outcome.seen)
        self._waking.discard(instance.model)
        self.feed(
            WakeDone(
                instance,
                outcome.error,
                out_of_memory=outcome.is_out_of_memory,
                is_mismatch=outcome.is_mismatch,
                can_freeze=outcome.can_freeze,
            )
        )

    async def _evict(self, action: Evict) -> None:
        instance = action.instance
        try:
            outcome = await self._instances[instance.model].evict(action.eviction, freeze=action.freeze)
        except Exception as failure:
            log.exception("unexpected error while evicting", model=instance.model)
            outcome = EvictOutcome(Cold(), error=FailureReason(f"{type(failure).__name__}: {failure}", INTERNAL_ERROR))
        if outcome.seen is not None:
            eviction = outcome.residency.eviction if isinstance(outcome.residency, Asleep) else None
            self._note_need(instance, outcome.seen, eviction)
        self.feed(EvictDone(instance, outcome.residency, outcome.error, outcome.host_mib))

    def _note_need(self, instance: InstanceId, seen: SeenMemory, eviction: Eviction | None = None) -> None:
        """Before the outcome itself is fed: what is decided upon it is decided by what the model really needs."""
        if self._needs is None:
            return
        record = self._scheduler.model(instance.model)
        has_answered = record.last_completed_at > -math.inf
        places = self._needs.engine_seen(instance.model, seen, record.awake.keys(), eviction, has_answered=has_answered)
        if places is not None:
            self.feed(NeedMeasured(instance, places))
