"""A ``ModelAccess`` whose every decision is the test's."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmux.access import Outcome, RequestHolder, Upstream
from llmux.core.forecast import Outlook
from llmux.core.names import ModelName, Register, own_names, register
from llmux.core.request import Request
from llmux.errors import ModelNotLoaded, RequestError

DEADLINE_SECONDS = 10.0


class Asked(NamedTuple):
    """One call of acquire."""

    request: Request
    holder: RequestHolder


@dataclass(slots=True)
class FakeAccess:
    """Admits at once for models in ``awake``, else remembers. Everything that happens is recorded.

    A test's numbers count the requests from 1, in the order of their ``acquire``.
    """

    awake: dict[str, Upstream] = field(default_factory=dict)
    asleep: list[str] = field(default_factory=list)
    queue_seconds: float = 0.0
    switch_seconds: float | None = None
    forecast_seconds: float | None = None
    outlooks: Iterator[Outlook | None] | None = None
    """What ``outlook`` answers, one after the other."""
    alive: bool | None = True
    """The answer of confirm_alive; None: the test reports through ``reports``."""
    on_give_back: Callable[["FakeAccess", int], None] | None = None
    on_acquire: Callable[["FakeAccess", int], bool] | None = None
    """Returns whether it has dealt with the request."""
    asked: list[Asked] = field(default_factory=list)
    waiting: dict[int, Asked] = field(default_factory=dict)
    leases: dict[int, Asked] = field(default_factory=dict)
    ended: list[tuple[int, Outcome]] = field(default_factory=list)
    first_tokens: list[int] = field(default_factory=list)
    given_back: list[tuple[int, str]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    reports: list[Callable[[bool], None]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    further_names: Sequence[ModelName] = ()
    """Beside the models' own."""

    @property
    def names(self) -> Register:
        return {**own_names([*self.awake, *self.asleep]), **register(self.further_names)}

    def acquire(self, request: Request, holder: RequestHolder) -> None:
        asked = Asked(request, holder)
        self.asked.append(asked)
        number = len(self.asked)
        self._changed.set()
        if self.on_acquire is not None and self.on_acquire(self, number):
            return
        self.waiting[number] = asked
        if request.model in self.awake:
            self.admit(number)
        elif not request.may_wake:
            self.reject(number, ModelNotLoaded(request.model))

    def cancel(self, request: Request) -> None:
        number = self._number(request)
        self.cancelled.append(number)
        self.waiting.pop(number, None)
        self._changed.set()

    def outlook(self, request: Request) -> Outlook | None:
        return None if self.outlooks is None else next(self.outlooks, None)

    def first_token(self, request: Request) -> None:
        self.first_tokens.append(self._number(request))

    def end(self, request: Request, outcome: Outcome) -> None:
        self._close(request, f"end({outcome.name})")
        self.ended.append((self._number(request), outcome))

    def give_back(self, request: Request, holder: RequestHolder, reason: str) -> None:
        number = self._number(request)
        self._close(request, "give_back")
        self.given_back.append((number, reason))
        assert holder is self.asked[number - 1].holder
        self.waiting[number] = self.asked[number - 1]
        if self.on_give_back is not None:
            self.on_give_back(self, number)

    def confirm_alive(self, request: Request, report: Callable[[bool], None]) -> None:
        self.reports.append(report)
        self._changed.set()
        if self.alive is not None:
            report(self.alive)

    # The test's side.

    def admit(self, number: int) -> None:
        """Let a waiting request have its model."""
        asked = self.leases[number] = self.waiting.pop(number)
        request = asked.request
        request.attempts += 1
        request.queue_seconds, request.switch_seconds = self.queue_seconds, self.switch_seconds
        request.forecast_seconds = self.forecast_seconds
        self._changed.set()
        asked.holder.admitted(self.awake[request.model])

    def reject(self, number: int, error: RequestError) -> None:
        """End a waiting request with an error."""
        asked = self.waiting.pop(number)
        self._changed.set()
        asked.holder.rejected(error)

    def revoke(self, number: int, error: RequestError) -> None:
        """Take a lease back; the holder may still give it back, and be admitted again within this call."""
        attempts = self.asked[number - 1].request.attempts
        self.asked[number - 1].holder.revoked(error)
        if self.asked[number - 1].request.attempts == attempts:
            self.leases.pop(number, None)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something recorded here makes the condition true."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _number(self, request: Request) -> int:
        return next(number for number, asked in enumerate(self.asked, 1) if asked.request is request)

    def _close(self, request: Request, how: str) -> None:
        number = self._number(request)
        if self.leases.pop(number, None) is None:
            self.problems.append(f"{how} for request {number}, which holds no lease")
        self._changed.set()
