"""The dispatcher where the gateway gets leases: keeps the requests, asks the scheduler, calls the holders back."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import assert_never

import structlog

from llmux.access import Lease, LeaseHolder, Outcome, Upstream
from llmux.core.actions import Admit, Freeze, Hold, Reject, RequestAction, Revoke, Thaw
from llmux.core.events import InstanceExited, RequestArrived, RequestDone, RequestGone, RequestReturned
from llmux.core.request import Priority, Request
from llmux.core.scheduler import Scheduler
from llmux.engines.health import Health
from llmux.observability.metrics import RuntimeMetrics
from llmux.runtime.controller import Controller, ManagedInstance

log = structlog.get_logger("llmux.dispatcher")

PROBE_SECONDS = 0.2
SECOND_LOOK_SECONDS = 0.15
"""A dying vLLM answers 500 up to 0.14 s before its /health says so (measured on 0.32)."""


class _Entry:
    """One request: its record, who holds it, and its lease while it has one."""

    __slots__ = ("holder", "lease", "request")

    def __init__(self, request: Request, holder: LeaseHolder) -> None:
        self.request = request
        self.holder = holder
        self.lease: Lease | None = None


class _DispatchedLease(Lease):
    __slots__ = ("entry",)

    def __init__(self, entry: _Entry, upstream: Upstream) -> None:
        request = entry.request
        super().__init__(request.id, request.model, upstream, request.queue_seconds, request.switch_seconds)
        self.entry = entry


class Dispatcher:
    """Keeps requests and their holders; passes requests to the scheduler, and its decisions to the holders."""

    def __init__(
        self,
        scheduler: Scheduler,
        controller: Controller,
        instances: dict[str, ManagedInstance],
        metrics: RuntimeMetrics,
    ) -> None:
        self._scheduler = scheduler
        self._controller = controller
        self._instances = instances
        self._metrics = metrics
        self._at_once = metrics.at_once
        self._numbers = count(1)
        self._now = controller.now
        self._waiting: dict[int, _Entry] = {}
        self._leases: dict[int, _Entry] = {}

    @property
    def models(self) -> Sequence[str]:
        return list(self._instances)

    def knows(self, model: str) -> bool:
        return model in self._instances

    def acquire(
        self,
        model: str,
        holder: LeaseHolder,
        *,
        size_bytes: int,
        may_wake: bool = True,
        priority: Priority = Priority.INTERACTIVE,
        streams: bool = False,
    ) -> int:
        request = Request(
            next(self._numbers), model, priority=priority, streams=streams, may_wake=may_wake, size_bytes=size_bytes
        )
        entry = _Entry(request, holder)
        if self._scheduler.admit(request, self._now()) is not None:
            lease = entry.lease = _DispatchedLease(entry, self._instances[model].upstream)
            self._leases[request.id] = entry
            self._at_once[model] += 1
            holder.lease_granted(lease)
        else:
            self._waiting[request.id] = entry
            self._controller.feed(RequestArrived(request))
        return request.id

    def cancel(self, request: int) -> None:
        entry = self._waiting.pop(request, None)
        if entry is not None:
            self._controller.feed(RequestGone(entry.request))

    def answered(self, lease: Lease) -> None:
        entry = self._leases.get(lease.request)
        if entry is not None and entry.request.streams:
            now = self._now()
            self._scheduler.first_token(entry.request, now)
            self._metrics.answered(lease.model, now - entry.request.arrived_at)

    def end(self, lease: Lease, outcome: Outcome) -> None:
        entry = self._leases.pop(lease.request, None)
        if entry is None:
            return
        completed = outcome is Outcome.COMPLETED
        if not self._scheduler.done(entry.request, completed, self._now()):
            self._controller.feed(RequestDone(entry.request, completed))

    def give_back(self, lease: Lease, reason: str) -> None:
        assert isinstance(lease, _DispatchedLease)
        self._leases.pop(lease.request, None)
        entry = self._waiting[lease.request] = lease.entry
        self._controller.run(self._return(entry, reason))

    def confirm_alive(self, lease: Lease, report: Callable[[bool], None]) -> None:
        self._controller.run(self._confirm(lease.model, report))

    def perform(self, action: RequestAction) -> None:
        """Tell the holder of a request what the scheduler has decided about it."""
        number = action.request.id
        match action:
            case Admit(request, instance):
                entry = self._waiting.pop(number, None)
                if entry is None:
                    # The client left between the decision and now.
                    self._controller.feed(RequestDone(request, completed=False))
                    return
                self._leases[number] = entry
                self._metrics.admitted(request.model, request.queue_seconds)
                entry.lease = _DispatchedLease(entry, self._instances[instance.model].upstream)
                entry.holder.lease_granted(entry.lease)
            case Reject(_, error):
                if (entry := self._waiting.pop(number, None)) is not None:
                    entry.holder.lease_refused(error)
            case Revoke(_, error):
                if (entry := self._leases.pop(number, None)) is not None:
                    entry.holder.lease_revoked(error)
            case Freeze():
                if (entry := self._leases.get(number)) is not None:
                    entry.holder.lease_frozen()
            case Hold():
                if (entry := self._leases.get(number)) is not None:
                    entry.holder.lease_held()
            case Thaw():
                if (entry := self._leases.get(number)) is not None:
                    entry.holder.lease_thawed()
            case _:
                assert_never(action)

    async def _return(self, entry: _Entry, reason: str) -> None:
        """Learn whether the engine lives before the request is queued again: a dead one must not be asked twice."""
        request = entry.request
        health = await self._instances[request.model].check_health(PROBE_SECONDS)
        if health is Health.DEAD and request.instance is not None:
            self._controller.feed(InstanceExited(request.instance, reason))
        if request.id in self._waiting:
            self._controller.feed(RequestReturned(request, reason))
        else:
            self._controller.feed(RequestDone(request, completed=False))

    async def _confirm(self, model: str, report: Callable[[bool], None]) -> None:
        engine = self._instances[model]
        health = await engine.check_health(PROBE_SECONDS)
        if health is not Health.DEAD:
            # Silence is no sign of life: an engine that answers many clients as it dies has no time for /health.
            await asyncio.sleep(SECOND_LOOK_SECONDS)
            health = await engine.check_health(PROBE_SECONDS)
        report(health is not Health.DEAD)
