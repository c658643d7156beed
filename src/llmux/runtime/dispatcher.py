"""The dispatcher where the gateway gets leases: keeps the requests, asks the scheduler, calls the holders back."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count

import structlog

from llmux.access import Lease, LeaseHolder, Outcome, Priority, Upstream
from llmux.core.events import InstanceExited, RequestArrived, RequestDone, RequestGone, RequestReturned
from llmux.core.identifiers import InstanceId
from llmux.core.scheduler import Scheduler
from llmux.engines.health import Health
from llmux.errors import RequestError
from llmux.observability.metrics import RuntimeMetrics
from llmux.runtime.controller import Controller, ManagedInstance

log = structlog.get_logger("llmux.dispatcher")

PROBE_SECONDS = 0.2
SECOND_LOOK_SECONDS = 0.15
"""A dying vLLM answers 500 up to 0.14 s before its /health says so (measured on 0.32)."""


class _Pending:
    """A request that waits for its first or its next lease."""

    __slots__ = (
        "arrived_at",
        "attempts",
        "holder",
        "may_wake",
        "model",
        "priority",
        "queued_at",
        "size_bytes",
        "streams",
    )

    def __init__(self, holder: LeaseHolder, model: str, arrived_at: float, size_bytes: int, attempts: int = 0) -> None:
        self.holder = holder
        self.model = model
        self.arrived_at = arrived_at
        self.queued_at = arrived_at
        self.size_bytes = size_bytes
        self.attempts = attempts
        self.may_wake = True
        self.priority = Priority.INTERACTIVE
        self.streams = False


class _DispatchedLease(Lease):
    """A lease with what the dispatcher must remember of its request."""

    __slots__ = ("arrived_at", "attempts", "holder", "instance", "may_wake", "priority", "size_bytes", "streams")

    holder: LeaseHolder
    instance: InstanceId
    arrived_at: float
    attempts: int
    size_bytes: int
    may_wake: bool
    priority: Priority
    streams: bool


class Dispatcher:
    """See ``ModelAccess``; the controller's ``Requests`` too."""

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
        self._pending: dict[int, _Pending] = {}
        self._leases: dict[int, _DispatchedLease] = {}

    @property
    def models(self) -> Sequence[str]:
        """See ``ModelAccess``."""
        return list(self._instances)

    def knows(self, model: str) -> bool:
        """See ``ModelAccess``."""
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
        """See ``ModelAccess``."""
        request = next(self._numbers)
        now = self._now()
        instance = self._scheduler.admit(request, model, now, streams=streams)
        if instance is not None:
            upstream = self._instances[model].upstream
            lease = _DispatchedLease(request, model, upstream, 0.0, None)
            lease.holder = holder
            lease.instance = instance
            lease.arrived_at = now
            lease.attempts = 1
            lease.size_bytes = size_bytes
            lease.may_wake = may_wake
            lease.priority = priority
            lease.streams = streams
            self._leases[request] = lease
            self._at_once[model] += 1
            holder.lease_granted(lease)
        else:
            pending = self._pending[request] = _Pending(holder, model, now, size_bytes)
            pending.may_wake = may_wake
            pending.priority = priority
            pending.streams = streams
            self._controller.feed(RequestArrived(request, model, size_bytes, may_wake, priority, streams))
        return request

    def cancel(self, request: int) -> None:
        """See ``ModelAccess``."""
        pending = self._pending.pop(request, None)
        if pending is not None:
            self._controller.feed(RequestGone(request, pending.model))

    def answered(self, lease: Lease) -> None:
        """See ``ModelAccess``."""
        assert isinstance(lease, _DispatchedLease)
        if lease.streams:
            now = self._now()
            self._scheduler.answered(lease.request, lease.model, now)
            self._metrics.answered(lease.model, now - lease.arrived_at)

    def end(self, lease: Lease, outcome: Outcome) -> None:
        """See ``ModelAccess``."""
        if self._leases.pop(lease.request, None) is None:
            return
        completed = outcome is Outcome.COMPLETED
        if not self._scheduler.done(lease.request, lease.model, completed, self._now()):
            self._controller.feed(RequestDone(lease.request, lease.model, completed))

    def give_back(self, lease: Lease, reason: str) -> None:
        """See ``ModelAccess``."""
        assert isinstance(lease, _DispatchedLease)
        self._leases.pop(lease.request, None)
        pending = _Pending(lease.holder, lease.model, lease.arrived_at, lease.size_bytes, lease.attempts)
        pending.queued_at = self._now()
        pending.priority = lease.priority
        pending.streams = lease.streams
        self._pending[lease.request] = pending
        self._controller.run(self._return(lease, reason))

    def confirm_alive(self, lease: Lease, report: Callable[[bool], None]) -> None:
        """See ``ModelAccess``."""
        assert isinstance(lease, _DispatchedLease)
        self._controller.run(self._confirm(lease, report))

    def admitted(self, request: int, instance: InstanceId, upstream: Upstream) -> None:
        """See ``Requests``."""
        pending = self._pending.pop(request, None)
        if pending is None:
            # The client left between the decision and now.
            self._controller.feed(RequestDone(request, instance.model, completed=False))
            return
        now = self._now()
        waited = now - pending.arrived_at
        switch_seconds = self._metrics.switch_since(pending.model, pending.queued_at)
        lease = _DispatchedLease(request, pending.model, upstream, waited, switch_seconds)
        lease.holder = pending.holder
        lease.instance = instance
        lease.arrived_at = pending.arrived_at
        lease.attempts = pending.attempts + 1
        lease.size_bytes = pending.size_bytes
        lease.may_wake = pending.may_wake
        lease.priority = pending.priority
        lease.streams = pending.streams
        self._leases[request] = lease
        self._metrics.admitted(pending.model, waited)
        pending.holder.lease_granted(lease)

    def rejected(self, request: int, error: RequestError) -> None:
        """See ``Requests``."""
        pending = self._pending.pop(request, None)
        if pending is not None:
            pending.holder.lease_refused(error)

    def revoked(self, request: int, error: RequestError) -> None:
        """See ``Requests``."""
        lease = self._leases.pop(request, None)
        if lease is not None:
            lease.holder.lease_revoked(error)

    def frozen(self, request: int) -> None:
        """See ``Requests``."""
        lease = self._leases.get(request)
        if lease is not None:
            lease.holder.lease_frozen()

    def held(self, instance: InstanceId) -> None:
        """See ``Requests``."""
        # Nothing of an instance that is being woken is in flight: all its leases are frozen.
        for lease in [lease for lease in self._leases.values() if lease.instance == instance]:
            lease.holder.lease_held()

    def thawed(self, request: int) -> None:
        """See ``Requests``."""
        lease = self._leases.get(request)
        if lease is not None:
            lease.holder.lease_thawed()

    async def _return(self, lease: _DispatchedLease, reason: str) -> None:
        """Learn whether the engine lives before the request is queued again: a dead one must not be asked twice."""
        health = await self._instances[lease.model].check_health(PROBE_SECONDS)
        if health is Health.DEAD:
            self._controller.feed(InstanceExited(lease.instance, reason))
        if lease.request not in self._pending:
            self._controller.feed(RequestDone(lease.request, lease.model, completed=False))
            return
        self._controller.feed(
            RequestReturned(
                lease.request,
                lease.model,
                lease.arrived_at,
                lease.attempts,
                lease.size_bytes,
                reason,
                lease.may_wake,
                lease.priority,
                lease.streams,
            )
        )

    async def _confirm(self, lease: _DispatchedLease, report: Callable[[bool], None]) -> None:
        engine = self._instances[lease.model]
        health = await engine.check_health(PROBE_SECONDS)
        if health is not Health.DEAD:
            # Silence is no sign of life: an engine that tells many clients of its death has no time for /health.
            health = await self._second_look(engine)
        report(health is not Health.DEAD)

    async def _second_look(self, engine: ManagedInstance) -> Health:
        await asyncio.sleep(SECOND_LOOK_SECONDS)
        return await engine.check_health(PROBE_SECONDS)
