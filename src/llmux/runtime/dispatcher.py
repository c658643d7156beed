"""Where the gateway's requests wait: passes them to the scheduler, and its decisions to their holders."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, assert_never

from llmux.access import Outcome, Progress, RequestHolder
from llmux.core.actions import Admit, Freeze, Hold, Reject, RequestAction, Revoke, Thaw
from llmux.core.events import InstanceExited, RequestArrived, RequestDone, RequestGone, RequestReturned
from llmux.core.forecast import Outlook
from llmux.core.names import Register, own_names
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler
from llmux.errors import EngineDied, FailureReason, Overloaded, QueueFull, QueueTimeout, RequestError
from llmux.instances.health import Health
from llmux.observability.metrics import RuntimeMetrics
from llmux.runtime.answered import AnsweredRequests
from llmux.runtime.controller import Controller, ManagedInstance
from llmux.runtime.forecasts import Forecasts
from llmux.runtime.overload import Overload

HEALTH_TIMEOUT_SECONDS = 0.2
"""An engine that lives answers /health in milliseconds; a client is waiting for this."""

SECOND_CHECK_SECONDS = 0.15
"""A dying engine answers 500 up to 0.14 s before its /health says so (measured)."""


_COMPLETED: Final = Outcome.COMPLETED


class _Served:
    """One model: its instance, and how many of its requests have not had to wait.

    Counted here and read at scrape: on this path a method call would cost more than the addition.
    """

    __slots__ = ("admitted_at_once", "instance")

    def __init__(self, instance: ManagedInstance) -> None:
        self.instance = instance
        self.admitted_at_once = 0


class Dispatcher:
    """Implements ``ModelAccess``. A request is in one of two tables: waiting for a lease, or holding one.

    Where an engine works on after its answer, the request stays in flight, in a third table, until it has no work.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        controller: Controller,
        instances: Mapping[str, ManagedInstance],
        metrics: RuntimeMetrics,
        names: Register | None = None,
    ) -> None:
        self.names = own_names(instances) if names is None else names
        self._scheduler = scheduler
        self._forecasts = Forecasts(scheduler)
        self.overload = Overload(scheduler.limits.request_timeout_seconds, controller.now, self._forecasts.offered_load)
        metrics.watch_overload(self.overload)
        self._controller = controller
        self._instances = instances
        self._metrics = metrics
        self._served = {name: _Served(instance) for name, instance in instances.items()}
        metrics.watch_admissions(lambda model: self._served[model].admitted_at_once)
        self._now = controller.now
        self._waiting: dict[Request, RequestHolder] = {}
        self._leases: dict[Request, RequestHolder] = {}
        self._answered: dict[str, AnsweredRequests] = {
            name: AnsweredRequests(instance.has_work, self._done)
            for name, instance in instances.items()
            if instance.works_after_answering
        }

    def acquire(self, request: Request, holder: RequestHolder) -> None:
        if self._scheduler.admit(request, self._now()) is not None:
            self._leases[request] = holder
            served = self._served[request.model]
            served.admitted_at_once += 1
            holder.admitted(served.instance.upstream)
        else:
            self._waiting[request] = holder
            self._controller.feed(RequestArrived(request))
            if request in self._waiting:
                self._forecasts.note(request, self._now())
                self.overload.note(request.model, request.forecast_seconds, request.timeout_seconds)

    def cancel(self, request: Request) -> None:
        if self._waiting.pop(request, None) is not None:
            self._controller.feed(RequestGone(request))

    def outlook(self, request: Request) -> Outlook | None:
        return self._forecasts.outlook(request, self._now()) if request in self._waiting else None

    def first_token(self, request: Request) -> None:
        now = self._now()
        self._scheduler.first_token(request, now)
        self._metrics.first_token(request.model, now - request.arrived_at)

    def end(self, request: Request, outcome: Outcome) -> None:
        if self._leases.pop(request, None) is None:
            return
        completed = outcome is _COMPLETED
        if request.streams and outcome is not Outcome.CLIENT_GONE:
            self._metrics.ended(request, complete=completed)
        answered = self._answered.get(request.model) if self._answered else None
        if answered is not None and request.may_wake:
            if answered.add(request, completed):
                self._controller.run(answered.watch())
        # As ``_done``, without its cost: this is on the path of every request.
        elif not self._scheduler.done(request, completed, self._now()):
            self._controller.feed(RequestDone(request, completed))

    def _done(self, request: Request, completed: bool) -> None:
        if not self._scheduler.done(request, completed, self._now()):
            self._controller.feed(RequestDone(request, completed))

    def give_back(self, request: Request, holder: RequestHolder, reason: str) -> None:
        self._leases.pop(request, None)
        self._waiting[request] = holder
        self._controller.run(self._return(request, reason))

    def confirm_alive(self, request: Request, report: Callable[[bool], None]) -> None:
        self._controller.run(self._confirm(request.model, report))

    def progress_of(self, request: Request) -> Progress | None:
        """How far the answer to an admitted request is; None if that says nothing about its engine."""
        holder = self._leases.get(request)
        return None if holder is None else holder.progress()

    def perform(self, action: RequestAction) -> None:
        """Pass what the scheduler has decided about a request to its holder, if the client has not left meanwhile."""
        request = action.request
        if isinstance(action, Admit | Reject):
            holder = self._waiting.pop(request, None)
        elif isinstance(action, Revoke):
            holder = self._leases.pop(request, None)
            if request.model in self._answered:
                self._answered[request.model].drop(request)
        else:
            holder = self._leases.get(request)
        if holder is None:
            if isinstance(action, Admit):
                self._controller.feed(RequestDone(request, completed=False))
            return
        match action:
            case Admit(instance=instance):
                self._leases[request] = holder
                self._metrics.admitted(request)
                holder.admitted(self._instances[instance.model].upstream)
            case Reject(error=error):
                self._reject(request, holder, error)
            case Revoke(error=error):
                self._revoke(request, holder, error)
            case Freeze():
                holder.frozen()
            case Hold():
                holder.held()
            case Thaw():
                holder.thawed()
            case _:
                assert_never(action)

    def _reject(self, request: Request, holder: RequestHolder, error: RequestError) -> None:
        if isinstance(error, QueueFull | QueueTimeout):
            error.forecast_seconds = self._forecasts.wait_seconds(request, self._now())
        if isinstance(error, Overloaded):
            self.overload.late(request.model, error.forecast_seconds)
        self._metrics.ended(request, complete=False)
        holder.rejected(error)

    def _revoke(self, request: Request, holder: RequestHolder, error: RequestError) -> None:
        # One that has nothing of its answer yet is given back after its engine's death, and tried again.
        if request.ttft_seconds is not None or not isinstance(error, EngineDied):
            self._metrics.ended(request, complete=False)
        holder.revoked(error)

    async def _return(self, request: Request, reason: str) -> None:
        """Learn whether the engine lives before the request is queued again: a dead one must not be asked twice."""
        health = await self._instances[request.model].check_health(HEALTH_TIMEOUT_SECONDS)
        if health is Health.DEAD and request.instance is not None:
            self._controller.feed(InstanceExited(request.instance, FailureReason(reason)))
        if request in self._waiting:
            self._controller.feed(RequestReturned(request, FailureReason(reason)))
        else:
            self._controller.feed(RequestDone(request, completed=False))

    async def _confirm(self, model: str, report: Callable[[bool], None]) -> None:
        engine = self._instances[model]
        health = await engine.check_health(HEALTH_TIMEOUT_SECONDS)
        if health is not Health.DEAD:
            # Silence is no sign of life: an engine that answers many clients as it dies has no time for /health.
            await asyncio.sleep(SECOND_CHECK_SECONDS)
            health = await engine.check_health(HEALTH_TIMEOUT_SECONDS)
        report(health is not Health.DEAD)
