"""GPU leases: between whoever asks for one and the scheduler, to which each is the one request of a model."""

import asyncio
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

import structlog

from llmux.core.actions import Admit, Freeze, Hold, Reject, RequestAction, Revoke, Thaw
from llmux.core.events import GpuLeaseRequested, RequestDone, RequestGone
from llmux.core.gpu_lease import GpuLease, lease_placements
from llmux.core.identifiers import EVERY_GPU
from llmux.core.scheduler import Scheduler
from llmux.core.waiting import OnItsWay, WaitReason
from llmux.errors import EngineUnavailable, LlmuxError, ModelNotAllowed, QueueTimeout, RequestError, ShuttingDown
from llmux.hosts.marked import mark_of
from llmux.instances.leased_program import LEASE_VARIABLE, LeasedProgram
from llmux.runtime.controller import Controller, GpuUser

log = structlog.get_logger("llmux.leases")

NO_REASON = ""


class LeaseState(StrEnum):
    """How far a GPU lease is."""

    WAITING = "waiting"
    HELD = "held"
    ENDING = "ending"
    """Its program has to end, or is ending."""
    REFUSED = "refused"
    """It was never held, and never will be."""
    RELEASED = "released"
    """llmux is shutting down: the program may go on without it."""


class LeaseRefused(LlmuxError):
    """A GPU lease that cannot be given. ``is_passing``: it could be at another time."""

    def __init__(self, reason: str, *, is_passing: bool = True) -> None:
        self.is_passing = is_passing
        super().__init__(reason)


class LeaseUnknown(LlmuxError):
    """There is no GPU lease of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"there is no GPU lease {number}; 'llmux status' shows those that there are")


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What is asked for."""

    command: str
    """What will run, for people."""
    memory_mib: int | None = None
    """Of each GPU; None: all of it."""
    gpus: int = 1
    wait_seconds: float = math.inf
    max_seconds: float = math.inf
    """How long it is held at most."""


@dataclass(slots=True, eq=False)
class HeldLease:
    """One GPU lease from when it is asked for until the memory is free again. Times are the scheduler's."""

    number: int
    request: LeaseRequest
    record: GpuLease
    program: LeasedProgram
    asked_at: float
    changed: asyncio.Event
    """Set at every change of what follows."""
    state: LeaseState = LeaseState.WAITING
    reason: str = NO_REASON
    """Why it is ending, was refused or was released."""
    is_timeout: bool = False
    """It is over because a time was: ``wait_seconds`` if it was refused, else ``max_seconds``."""
    held_at: float | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def until(self) -> float:
        """When its time is up; infinity if it has no limit, or is not held yet."""
        return math.inf if self.held_at is None else self.held_at + self.request.max_seconds

    def become(self, state: LeaseState, reason: str = NO_REASON, *, is_timeout: bool = False) -> None:
        """Change the state, and tell whoever waits for that."""
        self.state, self.reason, self.is_timeout = state, reason, is_timeout
        if self.timer is not None:
            self.timer.cancel()
        self.changed.set()


class GpuLeases:
    """All GPU leases that are waited for, held, or ending: at most ``Limits.gpu_leases_max``."""

    def __init__(
        self, scheduler: Scheduler, controller: Controller, new_program: Callable[[LeaseRequest], LeasedProgram]
    ) -> None:
        self.programs: dict[str, GpuUser] = {}
        """By the names under which the scheduler knows them; kept up to date."""
        self._scheduler = scheduler
        self._controller = controller
        self._new_program = new_program
        self._numbers = itertools.count(1)
        self._held: dict[str, HeldLease] = {}

    def now(self) -> float:
        """The time now, on the clock of the leases' times."""
        return self._controller.now()

    def ask(self, request: LeaseRequest) -> HeldLease:
        """Ask for a lease; whoever does must call ``leave`` in the end. Raises LeaseRefused."""
        capacity = {gpu: total for gpu, (total, _) in self._scheduler.gpu_memory().items()}
        placements = lease_placements(capacity, request.memory_mib, request.gpus)
        if not placements:
            sizes = ", ".join(f"GPU {gpu.uuid} has {total} MiB" for gpu, total in capacity.items())
            count = "is no GPU" if request.gpus == 1 else f"are not {request.gpus} GPUs"
            amount = "" if request.memory_mib is None else f" with {request.memory_mib} MiB"
            raise LeaseRefused(f"there {count}{amount}: {sizes}; ask for less", is_passing=False)
        self._forget_ended()
        number = next(self._numbers)
        record = GpuLease(number, placements, timeout_seconds=request.wait_seconds)
        lease = HeldLease(number, request, record, self._new_program(request), self._controller.now(), asyncio.Event())
        self._held[record.model], self.programs[record.model] = lease, lease.program
        log.info("GPU memory is asked for", lease=number, command=request.command, memory_mib=request.memory_mib)
        self._controller.feed(GpuLeaseRequested(record))
        if lease.state is LeaseState.REFUSED:
            raise LeaseRefused(lease.reason)
        return lease

    def leave(self, lease: HeldLease) -> None:
        """The holder's connection has closed: its program has ended, or died with it."""
        if lease.program.holder_left.is_set():
            return
        lease.program.holder_left.set()
        self._stop(lease, "its client has left" if lease.state is LeaseState.WAITING else "its program has ended")

    def end(self, number: int, reason: str) -> None:
        """End a lease; its holder is told to end the program. Raises LeaseUnknown."""
        lease = next((one for one in self.leases() if one.number == number), None)
        if lease is None:
            raise LeaseUnknown(number)
        self._stop(lease, reason)

    def leases(self) -> tuple[HeldLease, ...]:
        """Those that there are, in the order in which they were asked for."""
        self._forget_ended()
        return tuple(self._held.values())

    def is_leased(self, pid: int) -> bool:
        """Whether a process belongs to a program with a GPU lease. Blocks; may be called in a thread."""
        mark = mark_of(pid, LEASE_VARIABLE)
        return mark is not None and any(lease.program.token == mark for lease in list(self._held.values()))

    def perform(self, action: RequestAction) -> None:
        """Carry out what the scheduler has decided about a lease. Implements ``controller.Requests``."""
        lease = self._held[action.request.model]
        match action:
            case Admit():
                self._hold(lease)
            case Reject(error=error):
                lease.become(LeaseState.REFUSED, _reason(error, lease), is_timeout=isinstance(error, QueueTimeout))
                log.info("the GPU lease is refused", lease=lease.number, reason=lease.reason)
            case Revoke(error=error):
                assert isinstance(error, ShuttingDown), "a GPU lease is never a victim"
                lease.program.outlives_llmux = True
                lease.become(LeaseState.RELEASED, str(error))
            case Freeze() | Hold() | Thaw():
                raise AssertionError(f"a GPU lease is not suspended: {action}")
            case _:
                assert_never(action)

    def gpu_mib(self, lease: HeldLease) -> Mapping[str, int]:
        """What it holds of each GPU, by its name; empty where models are not placed by memory."""
        record = self._scheduler.find_gpu_lease(lease.record.model)
        held = {} if record is None else record.held
        return {gpu.uuid: mib for gpu, mib in held.items() if gpu != EVERY_GPU}

    def wait_reason(self, lease: HeldLease) -> WaitReason | None:
        """What a lease that waits is waiting for; None while the memory is being waited for that models have left."""
        reason = self._scheduler.wait_reasons(self.now()).get(lease.record.model)
        return None if isinstance(reason, OnItsWay) else reason

    def _hold(self, lease: HeldLease) -> None:
        if lease.state is not LeaseState.WAITING:
            self._controller.feed(RequestDone(lease.record, completed=False))
            return
        lease.held_at = self._controller.now()
        lease.become(LeaseState.HELD)
        if lease.request.max_seconds != math.inf:
            loop = asyncio.get_running_loop()
            lease.timer = loop.call_later(lease.request.max_seconds, self._time_is_up, lease)
        waited_seconds = round(lease.held_at - lease.asked_at, 3)
        log.info(
            "the GPU lease is held", lease=lease.number, command=lease.request.command, waited_seconds=waited_seconds
        )

    def _time_is_up(self, lease: HeldLease) -> None:
        self._end(lease, f"its {lease.request.max_seconds:g} s are over", is_timeout=True)

    def _stop(self, lease: HeldLease, reason: str) -> None:
        """Give it up, or end it, unless it is over already."""
        if lease.state is LeaseState.WAITING:
            self._give_up(lease, reason)
        elif lease.state is LeaseState.HELD:
            self._end(lease, reason)

    def _give_up(self, lease: HeldLease, reason: str) -> None:
        lease.become(LeaseState.REFUSED, reason)
        log.info("the GPU lease is given up", lease=lease.number, reason=reason)
        self._controller.feed(RequestGone(lease.record))

    def _end(self, lease: HeldLease, reason: str, *, is_timeout: bool = False) -> None:
        lease.become(LeaseState.ENDING, reason, is_timeout=is_timeout)
        log.info("the GPU lease ends", lease=lease.number, reason=reason)
        self._controller.feed(RequestDone(lease.record, completed=True))

    def _forget_ended(self) -> None:
        known = {model.name for model in self._scheduler.gpu_leases}
        for name in self._held.keys() - known:
            del self._held[name], self.programs[name]


def _reason(error: RequestError, lease: HeldLease) -> str:
    """Why a lease is refused, for whoever asked for it."""
    match error:
        case QueueTimeout():
            return f"it was not its turn within {lease.request.wait_seconds:g} s"
        case EngineUnavailable():
            return f"the GPU memory is not free: {error.reason}"
        case ModelNotAllowed():
            return "llmux is in manual mode, in which only the operator decides; unpin, or set the mode to auto"
        case _:
            return str(error)
