"""A lease access whose every decision is the test's."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmux.access import Lease, LeaseHolder, Outcome, Priority, Upstream
from llmux.errors import ModelNotLoaded, RequestError

DEADLINE_SECONDS = 10.0


@dataclass(slots=True)
class Asked:
    """One call of acquire."""

    number: int
    model: str
    holder: LeaseHolder
    size_bytes: int
    may_wake: bool
    priority: Priority = Priority.INTERACTIVE
    streams: bool = False


@dataclass(slots=True)
class FakeAccess:
    """Grants at once for models in ``awake``, else remembers; everything that happens is recorded."""

    awake: dict[str, Upstream] = field(default_factory=dict)
    asleep: list[str] = field(default_factory=list)
    queue_seconds: float = 0.0
    switch_seconds: float | None = None
    alive: bool | None = True
    """The answer of confirm_alive; None: the test reports through ``reports``."""
    on_give_back: Callable[["FakeAccess", Lease], None] | None = None
    on_acquire: Callable[["FakeAccess", Asked], bool] | None = None
    """Returns whether it has dealt with the request."""
    asked: list[Asked] = field(default_factory=list)
    waiting: dict[int, Asked] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)
    ended: list[tuple[int, Outcome]] = field(default_factory=list)
    answering: list[int] = field(default_factory=list)
    given_back: list[tuple[int, str]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    reports: list[Callable[[bool], None]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def models(self) -> Sequence[str]:
        return [*self.awake, *self.asleep]

    def knows(self, model: str) -> bool:
        return model in self.awake or model in self.asleep

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
        asked = Asked(len(self.asked) + 1, model, holder, size_bytes, may_wake, priority, streams)
        self.asked.append(asked)
        self._changed.set()
        if self.on_acquire is not None and self.on_acquire(self, asked):
            return asked.number
        self.waiting[asked.number] = asked
        if model in self.awake:
            self.grant(asked.number)
        elif not may_wake:
            self.refuse(asked.number, ModelNotLoaded(model))
        return asked.number

    def cancel(self, request: int) -> None:
        self.cancelled.append(request)
        self.waiting.pop(request, None)
        self._changed.set()

    def answered(self, lease: Lease) -> None:
        self.answering.append(lease.request)

    def end(self, lease: Lease, outcome: Outcome) -> None:
        self._close(lease, f"end({outcome.name})")
        self.ended.append((lease.request, outcome))

    def give_back(self, lease: Lease, reason: str) -> None:
        self._close(lease, "give_back")
        self.given_back.append((lease.request, reason))
        self.waiting[lease.request] = self.asked[lease.request - 1]
        if self.on_give_back is not None:
            self.on_give_back(self, lease)

    def confirm_alive(self, lease: Lease, report: Callable[[bool], None]) -> None:
        self.reports.append(report)
        self._changed.set()
        if self.alive is not None:
            report(self.alive)

    # The test's side.

    def grant(self, request: int) -> None:
        """Let a waiting request have its model."""
        asked = self.waiting.pop(request)
        lease = Lease(request, asked.model, self.awake[asked.model], self.queue_seconds, self.switch_seconds)
        self.leases[request] = lease
        self._changed.set()
        asked.holder.lease_granted(lease)

    def refuse(self, request: int, error: RequestError) -> None:
        """End a waiting request with an error."""
        asked = self.waiting.pop(request)
        self._changed.set()
        asked.holder.lease_refused(error)

    def revoke(self, request: int, error: RequestError) -> None:
        """Take a lease back; the holder may still give it back."""
        lease = self.leases[request]
        self.asked[request - 1].holder.lease_revoked(error)
        if self.leases.get(request) is lease:
            del self.leases[request]
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something recorded here makes the condition true."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _close(self, lease: Lease, how: str) -> None:
        if self.leases.pop(lease.request, None) is not lease:
            self.problems.append(f"{how} for request {lease.request}, which holds no such lease")
        self._changed.set()
