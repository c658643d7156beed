"""Whose files are read ahead, when, and what is counted; over a scheduler with scripted engines and real files."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from llmux.access import Outcome
from llmux.core.eviction import STOP, Eviction
from llmux.core.prediction import Demand
from llmux.core.settings import ModelSpec
from llmux.core.states import Cold
from llmux.hosts.read_ahead import PIECE_BYTES
from llmux.observability.prefetch_metrics import Found, Reason
from llmux.runtime import prefetch
from llmux.runtime.prefetch import Prefetcher, PrefetchLimits
from llmux.runtime.prefetch_choice import READ_AGAIN_SECONDS
from tests.support.cold_files import MIB, cached_mib, drop, write_cold
from tests.support.scripted import DEADLINE_SECONDS, OFFLOAD, Holder, Runtime, scripted_runtime

DISCARD = Eviction.parse("discard+keep_running")
STANDING_STILL = 1.0
"""Bytes per second: after its first piece a run waits until it is stopped."""


@dataclass(slots=True)
class Source:
    """A model with files, which remembers when it was asked for them."""

    files: Sequence[Path] = ()
    asked: list[Eviction | None] = field(default_factory=list)
    failure: Exception | None = None

    def files_to_wake(self, asleep: Eviction | None) -> Sequence[Path]:
        self.asked.append(asleep)
        if self.failure is not None:
            raise self.failure
        return self.files


@dataclass(slots=True)
class Scene:
    """Models ``a``, ``b`` and ``c``, of which one fits, and a prefetcher that looks when the test says so."""

    runtime: Runtime
    sources: dict[str, Source]
    prefetcher: Prefetcher = field(init=False)
    passed_seconds: float = 0.0

    def now(self) -> float:
        return self.runtime.controller.now() + self.passed_seconds

    async def serve(self, model: str) -> Holder:
        """A request that is at the engine."""
        holder = self.runtime.ask(model)
        await holder.wait("admitted")
        return holder

    def finish(self, holder: Holder) -> None:
        self.runtime.access.end(holder.request, Outcome.COMPLETED)

    async def visit(self, *models: str) -> None:
        """Let each of the models serve a request, one after the other."""
        for model in models:
            self.finish(await self.serve(model))

    async def read_on(self) -> None:
        """Look, and again when a run has ended, until none follows."""
        await self.prefetcher.look()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while (run := self.prefetcher._run) is not None:
                await asyncio.wait([run.ended])
                await self.prefetcher.look()

    async def until_reading(self, model: str) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.reading is None or self.reading[0] != model:
                await self.prefetcher.look()
                await asyncio.sleep(0)

    async def until_first_piece(self) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self.prefetcher._run is None or not self.prefetcher._run.reading.read_bytes:
                await asyncio.sleep(0)

    @property
    def reading(self) -> tuple[str, str] | None:
        """The model whose files are being read, and why."""
        described = self.prefetcher.describe()
        return None if described is None else (str(described["model"]), str(described["reason"]))


@asynccontextmanager
async def scene(
    *,
    predicts: bool = False,
    rate: float = 1e15,
    memory_max_bytes: int | None = 1 << 60,
    available_mib: int = 1 << 30,
    evictions: Sequence[Eviction] = (STOP, STOP, STOP),
    past: Callable[[], Sequence[Demand]] = tuple,
    **files: Path,
) -> AsyncIterator[Scene]:
    specs = [ModelSpec(name, eviction) for name, eviction in zip("abc", evictions, strict=True)]
    async with scripted_runtime(*specs) as runtime:
        made = Scene(runtime, {name: Source([files[name]] if name in files else []) for name in "abc"})
        made.prefetcher = Prefetcher(
            runtime.scheduler,
            made.sources,
            PrefetchLimits(predicts, rate, memory_max_bytes, memory_reserve_mib=0),
            made.now,
            read_past_demands=past,
            read_available_mib=lambda: available_mib,
            wall_clock=lambda: 0.0,
        )
        runtime.controller.watch(made.prefetcher)
        yield made
        if (run := made.prefetcher._run) is not None:
            run.reading.stop()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_cold(tmp_path / "b.safetensors", 6)


async def test_a_queued_model_is_read_while_another_one_drains(weights: Path) -> None:
    async with scene(b=weights) as here:
        first = await here.serve("a")
        waiting = here.runtime.ask("b")
        await here.read_on()
        assert isinstance(here.runtime.scheduler.state("b"), Cold)
        assert cached_mib(weights) == 6
        here.finish(first)
        await waiting.wait("admitted")
        await here.prefetcher.look()
        counts = here.prefetcher.counts["b"]
        assert counts.wakes == {Found.HIT: 1}
        assert counts.read_bytes == {Reason.QUEUED: 6 * MIB}
        assert counts.used_bytes == 6 * MIB
        assert counts.saved_seconds > 0


async def test_a_wake_ends_the_reading_at_once_and_what_was_read_counts(weights: Path) -> None:
    async with scene(rate=STANDING_STILL, b=weights) as here:
        first = await here.serve("a")
        waiting = here.runtime.ask("b")
        await here.prefetcher.look()
        await here.until_first_piece()
        assert here.reading == ("b", "queued")
        # The kernel reads further than it is told to; what is still being read cannot be dropped, and is waited for.
        weights.read_bytes()
        drop(weights, PIECE_BYTES)
        here.finish(first)
        await waiting.wait("admitted")
        await here.read_on()
        assert here.reading is None
        counts = here.prefetcher.counts["b"]
        assert counts.wakes == {Found.PARTIAL: 1}
        assert counts.read_bytes == {Reason.QUEUED: PIECE_BYTES}
        assert counts.used_bytes == PIECE_BYTES


async def test_the_wake_of_another_model_ends_it_too_and_it_goes_on_afterwards(weights: Path) -> None:
    async with scene(rate=STANDING_STILL, c=weights) as here:
        first = await here.serve("a")
        here.runtime.engines["b"].wake_gate.clear()
        second = here.runtime.ask("b")
        here.runtime.ask("c")
        await here.until_reading("c")
        here.finish(first)
        await here.read_on()
        assert here.reading is None, "b is being woken"
        here.runtime.engines["b"].wake_gate.set()
        await second.wait("admitted")
        await here.prefetcher.look()
        assert here.reading == ("c", "queued")


async def test_wakes_that_nothing_was_read_for_are_misses_or_find_their_files_by_themselves(weights: Path) -> None:
    async with scene(b=weights) as here:
        await here.visit("b")
        await here.prefetcher.look()
        assert here.prefetcher.counts["b"].wakes == {Found.MISS: 1}
        weights.read_bytes()
        await here.visit("a", "b")
        await here.prefetcher.look()
        assert here.prefetcher.counts["b"].wakes == {Found.MISS: 1, Found.WARM: 1}
        assert here.prefetcher.counts["b"].used_bytes == 0


@pytest.mark.parametrize(("eviction", "is_read"), [(OFFLOAD, False), (DISCARD, True)])
async def test_a_sleeping_model_is_read_only_if_its_weights_come_from_the_disk(
    eviction: Eviction, is_read: bool, weights: Path
) -> None:
    async with scene(evictions=(STOP, eviction, STOP), b=weights) as here:
        await here.visit("b", "a")
        await here.prefetcher.look()
        here.sources["b"].asked.clear()
        first = await here.serve("a")
        waiting = here.runtime.ask("b")
        await here.read_on()
        assert here.sources["b"].asked == ([eviction] if is_read else [])
        here.finish(first)
        await waiting.wait("admitted")
        await here.prefetcher.look()
        assert sum(here.prefetcher.counts["b"].wakes.values()) == 1 + is_read


async def test_the_likeliest_model_is_read_while_nothing_is_to_be_switched(weights: Path) -> None:
    async with scene(predicts=True, c=weights) as here:
        await here.visit("a", "c", "b", "a", "c", "b", "a")
        await here.read_on()
        assert here.prefetcher.counts["c"].read_bytes == {Reason.PREDICTED: 6 * MIB}
        await here.visit("c")
        await here.prefetcher.look()
        assert here.prefetcher.counts["c"].wakes[Found.HIT] == 1


async def test_without_prediction_nobody_is_read_who_is_not_asked_for(weights: Path) -> None:
    async with scene(c=weights) as here:
        await here.visit("a", "c", "b", "a", "c", "b", "a")
        await here.read_on()
        assert here.prefetcher.counts["c"].read_bytes == {}


async def test_what_is_queued_goes_before_what_is_predicted(weights: Path, tmp_path: Path) -> None:
    other = write_cold(tmp_path / "other.gguf", 6)
    async with scene(predicts=True, rate=STANDING_STILL, b=weights, c=other) as here:
        await here.visit("a", "c", "a", "c", "a")
        await here.prefetcher.look()
        assert here.reading == ("c", "predicted")
        await here.serve("a")
        here.runtime.ask("b")
        await here.prefetcher.look()
        run = here.prefetcher._run
        assert run is not None
        await asyncio.wait([run.ended])
        await here.prefetcher.look()
        assert here.reading == ("b", "queued")


async def test_a_pinned_model_has_no_successor(weights: Path) -> None:
    async with scene(predicts=True, c=weights) as here:
        await here.visit("a", "c", "a", "c", "a")
        await here.runtime.operations.pin("a")
        await here.read_on()
        assert here.prefetcher.counts["c"].read_bytes == {}


async def test_the_past_is_known_from_the_access_log(weights: Path) -> None:
    past = [Demand(model, number) for number, model in enumerate("acacacac")]
    async with scene(predicts=True, past=lambda: past, c=weights) as here:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(here.prefetcher.run())
            here.finish(await here.serve("a"))
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not here.prefetcher.counts["c"].read_bytes:
                    await asyncio.sleep(0)
            running.cancel()


async def test_the_end_stops_the_reading(weights: Path) -> None:
    async with scene(rate=STANDING_STILL, b=weights) as here:
        await here.serve("a")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(here.prefetcher.run())
            here.runtime.ask("b")
            await here.until_first_piece()
            run = here.prefetcher._run
            running.cancel()
        assert run is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            await run.ended
        assert run.reading.read_bytes == PIECE_BYTES


async def test_a_configured_budget_is_shared_by_the_models_that_wait(weights: Path, tmp_path: Path) -> None:
    other = write_cold(tmp_path / "other.gguf", 6)
    async with scene(memory_max_bytes=8 * MIB, b=weights, c=other) as here:
        await here.serve("a")
        for model in ("b", "c"):
            here.runtime.ask(model)
        await here.read_on()
        counts = here.prefetcher.counts
        assert [counts[model].read_bytes[Reason.QUEUED] for model in "bc"] == [6 * MIB, 2 * MIB]
        here.passed_seconds = READ_AGAIN_SECONDS
        await here.read_on()
        assert [counts[model].read_bytes[Reason.QUEUED] for model in "bc"] == [6 * MIB, 2 * MIB], "once"


async def test_what_was_predicted_does_not_stand_in_the_way_of_what_is_wanted(weights: Path, tmp_path: Path) -> None:
    other = write_cold(tmp_path / "other.gguf", 6)
    async with scene(predicts=True, memory_max_bytes=8 * MIB, b=weights, c=other) as here:
        await here.visit("a", "c", "a", "c", "a")
        await here.read_on()
        assert cached_mib(other) == 6
        await here.serve("a")
        here.runtime.ask("b")
        await here.read_on()
        assert here.prefetcher.counts["b"].read_bytes == {Reason.QUEUED: 6 * MIB}


async def test_what_nobody_came_for_counts_for_five_minutes(weights: Path, tmp_path: Path) -> None:
    other = write_cold(tmp_path / "other.gguf", 6)
    async with scene(memory_max_bytes=6 * MIB, b=weights, c=other) as here:
        await here.serve("a")
        left = here.runtime.ask("b")
        await here.read_on()
        here.runtime.access.cancel(left.request)
        here.runtime.ask("c")
        await here.read_on()
        assert here.prefetcher.counts["c"].read_bytes == {Reason.QUEUED: 0}
        here.passed_seconds = READ_AGAIN_SECONDS
        await here.read_on()
        assert here.prefetcher.counts["c"].read_bytes == {Reason.QUEUED: 6 * MIB}


async def test_nothing_is_predicted_while_a_model_waits(weights: Path, tmp_path: Path) -> None:
    other = write_cold(tmp_path / "other.gguf", 6)
    async with scene(predicts=True, b=weights, c=other) as here:
        await here.visit("a", "c", "a", "c", "a")
        first = await here.serve("a")
        here.runtime.ask("b")
        await here.read_on()
        assert cached_mib(weights, other) == 6, "b's alone"
        here.finish(first)


async def test_half_of_the_available_memory_is_the_budget_unless_another_is_configured(weights: Path) -> None:
    async with scene(memory_max_bytes=None, available_mib=8, b=weights) as here:
        await here.serve("a")
        here.runtime.ask("b")
        await here.read_on()
        assert here.prefetcher.counts["b"].read_bytes == {Reason.QUEUED: 4 * MIB}


async def test_a_failure_is_logged_once_and_tried_again_later(weights: Path) -> None:
    async with scene(b=weights) as here:
        here.sources["b"].failure = ValueError("a bug")
        await here.serve("a")
        here.runtime.ask("b")
        with capture_logs() as logs:
            for _ in range(3):
                await here.prefetcher.look()
        assert [entry["event"] for entry in logs] == ["unexpected error while reading ahead"]
        assert here.sources["b"].asked == [None]
        here.sources["b"].failure = None
        here.passed_seconds = READ_AGAIN_SECONDS
        await here.read_on()
        assert cached_mib(weights) == 6


async def test_what_is_being_read_can_be_seen(weights: Path) -> None:
    async with scene(rate=STANDING_STILL, b=weights) as here:
        assert here.prefetcher.describe() is None
        await here.serve("a")
        here.runtime.ask("b")
        await here.prefetcher.look()
        await here.until_first_piece()
        assert here.prefetcher.describe() == {"model": "b", "reason": "queued", "done_mib": 0, "total_mib": 6}


async def test_looks_are_bounded_however_many_events_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "LOOK_INTERVAL_SECONDS", 3600.0)
    async with scene() as here, asyncio.TaskGroup() as tasks:
        looks = 0
        look = here.prefetcher.look

        async def counted() -> None:
            nonlocal looks
            looks += 1
            await look()

        monkeypatch.setattr(here.prefetcher, "look", counted)
        running = tasks.create_task(here.prefetcher.run())
        held = await here.serve("a")
        for _ in range(100):
            here.runtime.ask("a")
        here.finish(held)
        await asyncio.sleep(0)
        running.cancel()
        assert 1 <= looks <= 2, "one for the first event, one for the wake"
