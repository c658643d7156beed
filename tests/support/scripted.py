"""Engines and request holders that do what a test says, for the controller and the dispatcher."""

import asyncio
from collections import ChainMap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from llmux.access import Progress, Upstream
from llmux.core.events import ShutdownRequested
from llmux.core.eviction import Eviction, Process
from llmux.core.identifiers import GpuId
from llmux.core.need import Need
from llmux.core.policies.fifo import Fifo
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler
from llmux.core.settings import Limits, ModelSpec
from llmux.core.states import Asleep, Cold
from llmux.core.target import Targets
from llmux.errors import FailureReason, RequestError, UnsupportedEviction
from llmux.gpus.memory import GpuHeadroom
from llmux.instances.health import Health
from llmux.instances.leased_program import LeasedProgram
from llmux.instances.outcomes import EvictOutcome, WakeOutcome
from llmux.observability.metrics import RuntimeMetrics
from llmux.runtime.controller import Controller, GpuUser, ManagedInstance
from llmux.runtime.dispatcher import Dispatcher
from llmux.runtime.gpu_leases import GpuLeases
from llmux.runtime.loop_clock import LoopClock
from llmux.runtime.operations import Operations

OFFLOAD = Eviction.parse("offload+keep_running")
DEADLINE_SECONDS = 10.0


class ScriptedEngine:
    """An engine without a process. Gates that are closed make it hang there; errors that are set make it fail there."""

    def __init__(self, name: str, port: int, *, works_after_answering: bool = False) -> None:
        self.name = name
        self.upstream = Upstream("127.0.0.1", port)
        self.calls: list[str] = []
        self.wake_gate = asyncio.Event()
        self.evict_gate = asyncio.Event()
        self.token_gate = asyncio.Event()
        self.token_gate.set()
        self.is_generating = True
        """Whether it answers a question for one token."""
        self.wake_gate.set()
        self.evict_gate.set()
        self.wake_error: str | None = None
        self.wake_exception: Exception | None = None
        self.evict_error: str | None = None
        self.host_mib: int | None = None
        """What it holds of host memory asleep."""
        self.lost: str | None = None
        """How it has ended by itself."""
        self.is_out_of_memory = False
        self.health = Health.ALIVE
        self.first_healths: list[Health] = []
        """What /health says before it says ``health``."""
        self.pid: int | None = None
        self.output_tail: tuple[str, ...] = ("a line", "the last line")
        self.works_after_answering = works_after_answering
        self.is_working = False
        self._interruption: str | None = None

    @property
    def address(self) -> str | None:
        return None if self.pid is None else self.upstream.address

    async def has_work(self) -> bool:
        self.calls.append("has work")
        return self.is_working

    def why_not(self, eviction: Eviction) -> str | None:
        return str(UnsupportedEviction(eviction)) if eviction.process is Process.CUDA_SUSPEND else None

    async def wake(self, devices: tuple[str, ...] = ()) -> WakeOutcome:
        self.calls.append("wake")
        self.lost = None
        self.health = Health.ALIVE
        await self.wake_gate.wait()
        if self.wake_exception is not None:
            raise self.wake_exception
        reason = self._interruption or self.wake_error or self.lost
        error = None if reason is None else FailureReason(reason)
        if error is None:
            self.pid = self.upstream.port
        return WakeOutcome(error, is_out_of_memory=error is not None and self.is_out_of_memory)

    async def evict(self, eviction: Eviction, *, freeze: bool = False) -> EvictOutcome:
        self.calls.append(f"evict {eviction}{' frozen' if freeze else ''}")
        await self.evict_gate.wait()
        if self.evict_error is not None:
            return EvictOutcome(Cold(), error=FailureReason(self.evict_error))
        if not eviction.keeps_process or self.lost is not None:
            return EvictOutcome(Cold())
        return EvictOutcome(Asleep(eviction), host_mib=self.host_mib)

    async def delete_images(self) -> None:
        self.calls.append("delete images")

    async def end(self) -> None:
        self.calls.append("end")
        self.pid = None

    def interrupt(self, reason: str) -> None:
        self._interruption = reason
        self.wake_gate.set()

    async def check_health(self, timeout_seconds: float) -> Health:
        return self.first_healths.pop(0) if self.first_healths else self.health

    async def generates(self, limit_seconds: float) -> bool:
        self.calls.append(f"generate within {limit_seconds:g} s")
        await self.token_gate.wait()
        return self.is_generating

    def kill(self) -> None:
        self.calls.append("kill")


class Holder:
    """One request's side of the port: remembers its calls."""

    _numbers = count(1)

    def __init__(self, model: str, **more: Any) -> None:
        self.request = Request(next(self._numbers), model, **more)
        self.upstream: Upstream | None = None
        self.error: RequestError | None = None
        self.revocation: RequestError | None = None
        self.calls: list[str] = []
        self.received: Progress | None = (False, 0)
        """How far the answer is said to be."""
        self._changed = asyncio.Event()

    def admitted(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._note("admitted")

    def rejected(self, error: RequestError) -> None:
        self.error = error
        self._note("rejected")

    def revoked(self, error: RequestError) -> None:
        self.revocation = error
        self._note("revoked")

    def frozen(self) -> None:
        self._note("frozen")

    def held(self) -> None:
        self._note("held")

    def thawed(self) -> None:
        self._note("thawed")

    def progress(self) -> Progress | None:
        return self.received

    async def wait(self, *calls: str) -> None:
        """Wait until there have been exactly these calls, in this order."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while tuple(self.calls) != calls:
                self._changed.clear()
                await self._changed.wait()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._changed.set()


@dataclass(slots=True)
class Runtime:
    """A controller with scripted engines, and everything around it that a test asks."""

    scheduler: Scheduler
    controller: Controller
    access: Dispatcher
    operations: Operations
    metrics: RuntimeMetrics
    gpu_leases: GpuLeases
    engines: dict[str, ScriptedEngine] = field(default_factory=dict)

    def ask(self, model: str, **more: Any) -> Holder:
        """A new request."""
        holder = Holder(model, **more)
        self.access.acquire(holder.request, holder)
        return holder

    def give_back(self, holder: Holder, reason: str) -> None:
        """The holder's engine was lost before any of its answer was sent on."""
        self.access.give_back(holder.request, holder, reason)


@asynccontextmanager
async def scripted_runtime(
    *specs: ModelSpec,
    limits: Limits | None = None,
    clock: LoopClock | None = None,
    works_after_answering: bool = False,
    need_of: Callable[[str, GpuId], Need] | None = None,
) -> AsyncIterator[Runtime]:
    """A runtime over scripted engines, shut down at the end."""
    limits = limits or Limits(min_active_seconds=0.0, backoff_first_seconds=0.05)
    async with asyncio.TaskGroup() as tasks:
        scheduler = Scheduler(specs, Fifo(), limits)
        metrics = RuntimeMetrics({spec.name: Targets() for spec in specs}, scheduler)
        controller = Controller(scheduler, tasks.create_task, metrics, clock)
        engines = {
            spec.name: ScriptedEngine(spec.name, 1000 + number, works_after_answering=works_after_answering)
            for number, spec in enumerate(specs)
        }
        managed: dict[str, ManagedInstance] = dict(engines)
        access = Dispatcher(scheduler, controller, managed, metrics)
        gpu_leases = GpuLeases(
            scheduler, controller, lambda request: LeasedProgram(GpuHeadroom("any", None, None), 0.0)
        )
        users: ChainMap[str, GpuUser] = ChainMap(dict(engines), gpu_leases.programs)
        controller.attach(users, access, gpu_leases)
        operations = Operations(scheduler, controller, engines, streams=metrics.streams, need_of=need_of)
        yield Runtime(scheduler, controller, access, operations, metrics, gpu_leases, engines)
        for engine in engines.values():
            engine.wake_gate.set()
            engine.evict_gate.set()
            engine.evict_error = None
        controller.feed(ShutdownRequested(0.0))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await controller.wait_stopped()


def model(name: str, **more: object) -> ModelSpec:
    """A model that sleeps by offload."""
    return ModelSpec(name, OFFLOAD, **more)  # type: ignore[arg-type]
