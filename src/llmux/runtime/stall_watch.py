"""Notices engines that hang: on the GPU, with a process that lives, and without progress in anything they were asked.

Silence alone is no sign: neither a long prefill nor an answer that is not streamed sends a byte for minutes. So an
engine that has made no progress for ``engine_stall_seconds`` is asked: first ``/health``, which must fail several times
in a row; and where that answers though requests wait, for one token, which an engine that computes gives beside them.
Where all places are taken the question would wait for one itself; there the requests in flight must say it.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from llmux.access import Progress
from llmux.core.events import InstanceExited
from llmux.core.identifiers import InstanceId, Seconds
from llmux.core.model import Model
from llmux.core.request import Request
from llmux.core.scheduler import Scheduler
from llmux.core.states import Draining, Serving
from llmux.errors import FailureReason
from llmux.instances.health import Health
from llmux.observability.metrics import Stalls
from llmux.runtime.controller import Controller

log = structlog.get_logger("llmux.stall_watch")

LOOKS_PER_LIMIT = 6
"""How often, in ``engine_stall_seconds``, it is looked for progress."""
HEALTH_TRIES = 3
"""How many times in a row, once at each look, ``/health`` must fail."""
HEALTH_TIMEOUT_SECONDS = 5.0
TOKEN_LIMIT_FACTOR = 5.0
"""How long one token may take, in ``engine_stall_seconds``: engines take the question up only after a prefill under
way, and one of 100,000 tokens may take minutes."""

ANY_LIMIT_FACTOR = 30.0
"""How long a full engine may make no progress in anything, in ``engine_stall_seconds``, if all its requests are for
answers in one piece, or new: such answers show nothing before their end, and long ones take minutes."""

_NOT_BEGUN: Progress = (False, 0)


class WatchedEngine(Protocol):
    """What the watch needs of an engine."""

    async def check_health(self, timeout_seconds: float) -> Health:
        """Whether it is alive."""

    async def generates(self, limit_seconds: float) -> bool:
        """Whether it answers a question for one token in time; a failure other than lateness counts as an answer."""

    def kill(self) -> None:
        """Kill its processes; its exit is reported as any other."""


@dataclass(slots=True)
class _Observation:
    """What has been seen of one engine since it began to serve."""

    instance: InstanceId
    serving_since: Seconds
    looked_at: Seconds
    quiet_since: Seconds
    """When the last sign of progress was seen."""
    asked_since: Seconds | None = None
    """Since when it has had something to answer at every look; None while it has not. Clients come and go meanwhile."""
    answers: dict[Request, Progress] = field(default_factory=dict)
    """How far the answers were at the last look; without those that llmux itself does not read at present."""
    failed_checks: int = 0
    is_checking: bool = False


class StallWatch:
    """Looks at all engines on the GPU every few seconds. One that hangs is killed, and its exit given to the core."""

    def __init__(
        self,
        scheduler: Scheduler,
        controller: Controller,
        engines: Mapping[str, WatchedEngine],
        progress_of: Callable[[Request], Progress | None],
        limit_seconds: float,
    ) -> None:
        """``limit_seconds`` is ``engine_stall_seconds``; ``progress_of`` is the dispatcher's."""
        self.stalls = {name: Stalls() for name in engines}
        self._scheduler = scheduler
        self._controller = controller
        self._engines = engines
        self._progress_of = progress_of
        self._limit_seconds = limit_seconds
        self._now = controller.now
        self._observations: dict[str, _Observation] = {}

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as checks:
            while True:
                await asyncio.sleep(self._limit_seconds / LOOKS_PER_LIMIT)
                for name in self.find_quiet():
                    checks.create_task(self.check(name))

    def find_quiet(self) -> list[str]:
        """Look for progress; returns the models whose engines have to be asked."""
        if self._scheduler.is_stopping:
            return []
        looked_at = [(model.name, self._look(model)) for model in self._scheduler.models]
        return [name for name, seen in looked_at if seen is not None and self._is_quiet(seen)]

    async def check(self, name: str) -> None:
        """Ask a quiet engine whether it lives; if it does not, end it."""
        seen = self._observations.get(name)
        if seen is None:  # the model has left meanwhile
            return
        quiet_since = seen.quiet_since
        seen.is_checking = True
        try:
            reason = await self._find_reason(name, seen)
        finally:
            seen.is_checking = False
        if reason is None or self._scheduler.is_stopping:
            return
        # Meanwhile there may have been progress, or the model may have left.
        if self._look(self._scheduler.model(name)) is seen and seen.quiet_since == quiet_since:
            self._end(name, seen, reason)

    def _look(self, model: Model) -> _Observation | None:
        """Note how far everything is by now; returns None for a model that is not on the GPU."""
        now = self._now()
        match model.state:
            case Serving(since=since) | Draining(serving_since=since):
                pass
            case _:
                self._observations.pop(model.name, None)
                return None
        seen = self._observations.get(model.name)
        if seen is None or seen.instance != model.instance or seen.serving_since != since:
            seen = self._observations[model.name] = _Observation(model.instance, since, now, now)
        answers = {
            request: progress for request in model.in_flight if (progress := self._progress_of(request)) is not None
        }
        if model.last_completed_at >= seen.looked_at or any(
            progress != seen.answers.get(request, _NOT_BEGUN) for request, progress in answers.items()
        ):
            seen.quiet_since = now
            seen.failed_checks = 0
        if not answers:
            seen.asked_since = None
        elif seen.asked_since is None:
            seen.asked_since = min(map(_admitted_at, answers))
        seen.answers, seen.looked_at = answers, now
        return seen

    def _is_quiet(self, seen: _Observation) -> bool:
        return not seen.is_checking and self._quiet_seconds(seen) >= self._limit_seconds

    def _quiet_seconds(self, seen: _Observation) -> Seconds:
        since = seen.quiet_since if seen.asked_since is None else max(seen.quiet_since, seen.asked_since)
        return self._now() - since

    async def _find_reason(self, name: str, seen: _Observation) -> str | None:
        """Why the engine is taken to hang; None if it is not, or not yet."""
        engine, model = self._engines[name], self._scheduler.model(name)
        timeout_seconds = min(HEALTH_TIMEOUT_SECONDS, self._limit_seconds / LOOKS_PER_LIMIT)
        if await engine.check_health(timeout_seconds) is not Health.ALIVE:
            seen.failed_checks += 1
            log.warning("engine does not answer /health", model=name, times=seen.failed_checks)
            return f"/health failed {HEALTH_TRIES} times" if seen.failed_checks >= HEALTH_TRIES else None
        seen.failed_checks = 0
        if not seen.answers:
            seen.quiet_since = self._now()
            return None
        if isinstance(model.state, Draining):
            # It has a deadline of its own.
            return None
        if not model.has_free_place:
            return self._find_reason_of_full(seen)
        limit_seconds = TOKEN_LIMIT_FACTOR * self._limit_seconds
        log.warning("no progress: asking the engine for one token", model=name, limit_seconds=limit_seconds)
        if await engine.generates(limit_seconds):
            seen.quiet_since = self._now()
            return None
        return f"it answers /health, but not a question for one token within {limit_seconds:g} s"

    def _find_reason_of_full(self, seen: _Observation) -> str | None:
        """As ``_find_reason``, for an engine that answers /health and has no place for a question."""
        now = self._now()
        limit_seconds = TOKEN_LIMIT_FACTOR * self._limit_seconds
        # The engine has them all at once, so that such a stream should have had a token as the question should.
        is_stream_overdue = any(
            request.streams and now - _admitted_at(request) >= limit_seconds for request in seen.answers
        )
        if not is_stream_overdue:
            limit_seconds = ANY_LIMIT_FACTOR * self._limit_seconds
        if self._quiet_seconds(seen) < limit_seconds:
            return None
        return f"it answers /health, but nothing to the {len(seen.answers)} requests that take all its places"

    def _end(self, name: str, seen: _Observation, reason: str) -> None:
        reason = f"the engine hangs: no progress for {self._now() - seen.quiet_since:.0f} s, and {reason}"
        log.error("killing an engine that hangs", model=name, in_flight=len(seen.answers), reason=reason)
        self.stalls[name].note(reason)
        self._observations.pop(name)
        # In this order: its exit would be taken for the reason.
        self._controller.feed(InstanceExited(seen.instance, FailureReason(reason)))
        self._engines[name].kill()


def _admitted_at(request: Request) -> Seconds:
    return request.arrived_at + request.queue_seconds
