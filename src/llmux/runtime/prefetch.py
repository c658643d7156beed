"""Prefetch: reads the files of models that will soon be woken into the page cache, while something else serves.

It follows the scheduler and changes nothing in it. Everything that it does is given up for a wake: the disk is the
engine's then.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from llmux.core.eviction import Eviction
from llmux.core.prediction import Demand
from llmux.core.scheduler import Scheduler
from llmux.hosts.local import MIB, available_mib
from llmux.hosts.page_cache import cached_bytes_of
from llmux.hosts.read_ahead import ReadAhead, ReadEnd, ReadLimits
from llmux.observability.prefetch_metrics import PrefetchCounts
from llmux.runtime.prefetch_choice import (
    LOOK_AGAIN_SECONDS,
    READ_AGAIN_SECONDS,
    Ahead,
    Goal,
    PrefetchChoice,
    reads_files,
)

log = structlog.get_logger("llmux.prefetch")

LOOK_INTERVAL_SECONDS = 0.05
"""At least between two looks at the scheduler, however many events there are."""
MEMORY_SHARE = 0.5
"""The part of the available host memory that is used where no limit is configured."""


class FileSource(Protocol):
    """A model's engine, as far as its files are concerned."""

    def files_to_wake(self, asleep: Eviction | None) -> Sequence[Path]:
        """The files that its way back reads after it left by ``asleep``; None: a cold start. Reads the disk."""


@dataclass(frozen=True, slots=True)
class PrefetchLimits:
    """What may be read ahead, and what that may cost."""

    predicts: bool
    """Whether predicted models are read ahead too, and not only those for which requests wait."""
    bytes_per_second: float
    memory_max_bytes: int | None
    """Of the page cache, for models that have not been woken since; None: ``MEMORY_SHARE``."""
    memory_reserve_mib: int
    """Host memory that must stay available."""


@dataclass(slots=True)
class _Ahead(Ahead):
    """With what that took."""

    read_bytes: int = 0
    """From the disk."""
    read_seconds: float = 0.0
    """How long the disk took for them."""

    def add(self, reading: ReadAhead) -> None:
        """Count a run over the model's files."""
        self.read_bytes += reading.read_bytes
        self.read_seconds += reading.read_seconds
        self.held_bytes = max(self.held_bytes, reading.done_bytes)


@dataclass(frozen=True, slots=True)
class _Run:
    goal: Goal
    ahead: _Ahead
    reading: ReadAhead
    ended: asyncio.Future[ReadEnd]


@dataclass(frozen=True, slots=True)
class _Wake:
    """A wake that has begun, and what had been read ahead of it until then."""

    model: str
    asleep: Eviction | None
    read_bytes: int
    read_seconds: float


class Prefetcher:
    """Reads one model's files at a time: first those of queued models, in their order, then of predicted ones."""

    def __init__(
        self,
        scheduler: Scheduler,
        sources: Mapping[str, FileSource],
        limits: PrefetchLimits,
        now: Callable[[], float],
        *,
        read_past_demands: Callable[[], Sequence[Demand]] = tuple,
        read_available_mib: Callable[[], int] = available_mib,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``now`` is the scheduler's clock. ``read_past_demands`` may read the disk: what happened before the start."""
        self.counts = {model: PrefetchCounts() for model in sources}
        self._scheduler = scheduler
        self._sources = sources
        self._limits = limits
        self._now = now
        self._read_past_demands = read_past_demands
        self._available_mib = read_available_mib
        self._wall_clock = wall_clock
        self._demands: list[Demand] = []
        """Those that the predictor has not learnt yet: they come after what it learns from the past."""
        self._changed = asyncio.Event()
        self._wake_began = asyncio.Event()
        self._begun: dict[str, _Wake] = {}
        """Wakes whose files have not been looked for yet; at most one for each model."""
        self._ahead = {model: _Ahead() for model in sources}
        self._choice = PrefetchChoice(scheduler, self._ahead, predicts=limits.predicts)
        self._run: _Run | None = None

    # The controller's watcher.

    def wake_begins(self, model: str, asleep: Eviction | None) -> None:
        if self._run is not None:
            self._run.reading.stop()
        if model not in self._sources:
            return
        ahead, self._ahead[model] = self._ahead[model], _Ahead()
        if self._run is not None and self._run.ahead is ahead:
            ahead.add(self._run.reading)
        if asleep is None or reads_files(asleep):
            self._begun[model] = _Wake(model, asleep, ahead.read_bytes, ahead.read_seconds)
        if self._limits.predicts:
            self._demands.append(Demand(model, self._wall_clock()))
        self._wake_began.set()
        self._changed.set()

    def events_handled(self) -> None:
        self._changed.set()

    # For people.

    def describe(self) -> Mapping[str, object] | None:
        """What is being read now; None if nothing is."""
        run = self._run
        if run is None or run.ended.done():
            return None
        done_mib, total_mib = run.reading.done_bytes // MIB, run.reading.total_bytes // MIB
        return {"model": run.goal.model, "reason": run.goal.reason.value, "done_mib": done_mib, "total_mib": total_mib}

    # The task.

    async def run(self) -> None:
        """Read ahead until cancelled. Whatever fails in it is logged: nothing else depends on it."""
        try:
            if self._limits.predicts:
                await self._learn_from_the_past()
            while True:
                await _wait_for(self._changed, LOOK_AGAIN_SECONDS)
                await self.look()
                await _wait_for(self._wake_began, LOOK_INTERVAL_SECONDS)
        finally:
            if self._run is not None:
                self._run.reading.stop()

    async def look(self) -> None:
        """Judge the wakes that have begun since, and begin or end a run if that is due now."""
        self._learn()
        try:
            while self._begun:
                await self._judge(self._begun.pop(next(iter(self._begun))))
            await self._adjust()
        except Exception:
            log.exception("unexpected error while reading ahead")

    async def _learn_from_the_past(self) -> None:
        try:
            for demand in await asyncio.to_thread(self._read_past_demands):
                self._choice.observe(demand)
        except Exception:
            log.exception("unexpected error while reading the access log")

    def _learn(self) -> None:
        demands, self._demands = self._demands, []
        for demand in demands:
            self._choice.observe(demand)

    async def _judge(self, wake: _Wake) -> None:
        """Count where a wake finds its files. At once: the engine will soon have read them itself."""
        files = await asyncio.to_thread(self._sources[wake.model].files_to_wake, wake.asleep)
        found = await asyncio.to_thread(cached_bytes_of, files)
        if found is not None and found.size_bytes:
            self.counts[wake.model].wake(found.cached_bytes, found.size_bytes, wake.read_bytes, wake.read_seconds)

    async def _adjust(self) -> None:
        if self._run is not None and self._run.ended.done():
            run, self._run = self._run, None
            self._end(run)
        goal = self._choose()
        if self._run is not None:
            if self._run.goal != goal:
                self._run.reading.stop()
        elif goal is not None:
            reading = await self._prepare(goal)
            if self._choose() == goal:
                self._begin(goal, reading)

    def _choose(self) -> Goal | None:
        return self._choice.choose(self._now(), self._wall_clock())

    async def _prepare(self, goal: Goal) -> ReadAhead:
        ahead = self._ahead[goal.model]
        try:
            return await asyncio.to_thread(self._open, goal)
        except Exception:
            ahead.again_at = self._now() + READ_AGAIN_SECONDS
            raise

    def _open(self, goal: Goal) -> ReadAhead:
        """Reads the disk."""
        files = self._sources[goal.model].files_to_wake(goal.asleep)
        rate = goal.rate(self._limits.bytes_per_second)
        limits = ReadLimits(rate, self._memory_bytes(goal), self._limits.memory_reserve_mib)
        return ReadAhead(files, limits, read_available_mib=self._available_mib)

    def _memory_bytes(self, goal: Goal) -> int:
        """How much of its files may be in the page cache, beside those of others that were read ahead lately."""
        available_bytes, now = self._available_mib() * MIB, self._now()
        share_bytes = int(MEMORY_SHARE * available_bytes)
        budget_bytes = share_bytes if self._limits.memory_max_bytes is None else self._limits.memory_max_bytes
        held_bytes = int(self._choice.bytes_held_beside(goal, now))
        return max(0, min(budget_bytes, available_bytes) - held_bytes)

    def _begin(self, goal: Goal, reading: ReadAhead) -> None:
        ahead = self._ahead[goal.model]
        ahead.reason = goal.reason
        ended = reading.start()
        ended.add_done_callback(lambda _: self._changed.set())
        self._run = _Run(goal, ahead, reading, ended)

    def _end(self, run: _Run) -> None:
        reading, goal, ahead = run.reading, run.goal, run.ahead
        self.counts[goal.model].read_bytes[goal.reason] += reading.read_bytes
        ahead.add(reading)  # Without effect if its wake has begun, which has counted the run.
        # Not after a stop: it may go on when what stopped it is over.
        if (failure := run.ended.exception()) is not None or run.ended.result() is not ReadEnd.STOPPED:
            ahead.again_at = self._now() + READ_AGAIN_SECONDS
        if failure is not None:
            raise failure
        if reading.read_bytes:
            log.info(
                "read ahead",
                model=goal.model,
                reason=goal.reason.value,
                mib=reading.read_bytes // MIB,
                seconds=round(reading.read_seconds, 3),
                end=run.ended.result().value,
            )


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after that time; it is clear afterwards."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
