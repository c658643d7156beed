"""When an engine counts as hung, and what becomes of its requests; the time is the test's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from llmux.access import Outcome
from llmux.core.states import Asleep, Serving
from llmux.errors import EngineDied
from llmux.instances.health import Health
from llmux.runtime.loop_clock import LoopClock
from llmux.runtime.stall_watch import StallWatch
from tests.support.scripted import DEADLINE_SECONDS, Holder, Runtime, ScriptedEngine, model, scripted_runtime
from tests.support.skips import replaces_compiled_code

pytestmark = replaces_compiled_code
"""The clock: a test's own cannot be derived from a compiled one."""

LIMIT_SECONDS = 60.0
LOOK_SECONDS = 10.0


@dataclass(slots=True)
class Watched:
    """A runtime whose model ``a`` serves, and a watch over it, with a clock that the test puts forward."""

    runtime: Runtime = field(init=False)
    watch: StallWatch = field(init=False)
    passed_seconds: float = 0.0

    @property
    def engine(self) -> ScriptedEngine:
        return self.runtime.engines["a"]

    @property
    def is_ended(self) -> bool:
        return "kill" in self.engine.calls

    async def serve(self, **more: object) -> Holder:
        """A request that is at the engine."""
        holder = self.runtime.ask("a", **more)
        await holder.wait("admitted")
        return holder

    async def look(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Let so much time pass, with all the looks in it."""
        for _ in range(round(seconds / LOOK_SECONDS)):
            self.passed_seconds += LOOK_SECONDS
            meanwhile()
            for name in self.watch.find_quiet():
                await self.watch.check(name)


class SteppedClock(LoopClock):
    """One that a test has put forward."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bench: Watched) -> None:
        self._bench = bench
        super().__init__(loop)

    def now(self) -> float:
        return super().now() + self._bench.passed_seconds

    def on_loop(self, at: float) -> float:
        return super().on_loop(at) - self._bench.passed_seconds


@asynccontextmanager
async def watched(**fields: object) -> AsyncIterator[Watched]:
    bench = Watched()
    clock = SteppedClock(asyncio.get_running_loop(), bench)
    async with scripted_runtime(model("a", **fields), model("b"), clock=clock) as runtime:
        bench.runtime = runtime
        bench.watch = watch = StallWatch(
            runtime.scheduler, runtime.controller, runtime.engines, runtime.access.progress_of, LIMIT_SECONDS
        )
        first = await bench.serve()
        runtime.access.end(first.request, Outcome.COMPLETED)
        watch.find_quiet()
        yield bench


async def test_an_engine_that_is_silent_on_health_is_killed_and_its_requests_are_answered_by_the_next() -> None:
    async with watched() as bench:
        holder = await bench.serve()
        bench.engine.health = Health.SILENT
        await bench.look(LIMIT_SECONDS + LOOK_SECONDS)
        assert not bench.is_ended
        await bench.look(2 * LOOK_SECONDS)
        assert bench.is_ended
        await holder.wait("admitted", "revoked")
        assert isinstance(holder.revocation, EngineDied)
        assert "no progress for 80 s, and /health failed 3 times" in str(holder.revocation)
        stalls = bench.watch.stalls["a"]
        assert stalls.count == 1 and stalls.last is not None and stalls.last in str(holder.revocation)
        bench.runtime.give_back(holder, "the engine died")
        await holder.wait("admitted", "revoked", "admitted")


async def test_nothing_is_asked_while_bytes_come() -> None:
    async with watched() as bench:
        holder = await bench.serve(streams=True)
        bench.engine.health = Health.SILENT

        def receive() -> None:
            assert holder.received is not None
            holder.received = (True, holder.received[1] + 1)

        await bench.look(10 * LIMIT_SECONDS, receive)
        assert not bench.is_ended
        await bench.look(LIMIT_SECONDS + 2 * LOOK_SECONDS)
        assert bench.is_ended, "the stream has stopped"


async def test_nothing_is_asked_while_requests_end() -> None:
    async with watched() as bench:
        await bench.serve()
        bench.engine.health = Health.SILENT

        def answer() -> None:
            short = bench.runtime.ask("a")
            bench.runtime.access.end(short.request, Outcome.COMPLETED)

        await bench.look(10 * LIMIT_SECONDS, answer)
        assert not bench.is_ended


async def test_clients_that_leave_and_come_again_are_no_progress() -> None:
    async with watched() as bench:
        waiting = [await bench.serve()]
        bench.engine.health = Health.SILENT

        def retry() -> None:
            waiting.append(bench.runtime.ask("a"))
            bench.runtime.access.end(waiting[-2].request, Outcome.CLIENT_GONE)

        await bench.look(LIMIT_SECONDS + 3 * LOOK_SECONDS, retry)
        assert bench.is_ended


async def test_a_client_that_does_not_read_is_not_the_engines_fault() -> None:
    """Its answer is not read from the engine, which may wait for that; whether it lives is all that is asked."""
    async with watched() as bench:
        holder = await bench.serve(streams=True)
        holder.received = None
        bench.engine.is_generating = False
        await bench.look(20 * LIMIT_SECONDS)
        assert not bench.is_ended
        assert not [call for call in bench.engine.calls if call.startswith("generate")]
        bench.engine.health = Health.SILENT
        await bench.look(2 * LIMIT_SECONDS)
        assert bench.is_ended


async def test_health_has_to_fail_several_times_in_a_row() -> None:
    async with watched() as bench:
        await bench.serve()
        bench.engine.first_healths = [Health.SILENT, Health.SILENT, Health.ALIVE] * 10
        await bench.look(5 * LIMIT_SECONDS)
        assert not bench.is_ended


@pytest.mark.parametrize("health", [Health.SILENT, Health.DEAD])
async def test_an_idle_engine_is_asked_from_time_to_time(health: Health) -> None:
    async with watched() as bench:
        await bench.look(10 * LIMIT_SECONDS)
        assert not bench.is_ended
        bench.engine.health = health
        await bench.look(LIMIT_SECONDS + 3 * LOOK_SECONDS)
        assert bench.is_ended
        async with asyncio.timeout(DEADLINE_SECONDS):
            await bench.serve()
        assert bench.engine.calls.count("wake") == 2


async def test_a_long_prefill_is_not_a_hang() -> None:
    """The engine answers /health, and one token after a while."""
    async with watched() as bench:
        await bench.serve()
        await bench.look(20 * LIMIT_SECONDS)
        assert not bench.is_ended
        assert f"generate within {5 * LIMIT_SECONDS:g} s" in bench.engine.calls


async def test_an_engine_that_answers_health_and_generates_nothing_is_killed() -> None:
    async with watched() as bench:
        holder = await bench.serve()
        bench.engine.is_generating = False
        await bench.look(LIMIT_SECONDS)
        assert bench.is_ended
        await holder.wait("admitted", "revoked")
        assert "not a question for one token within 300 s" in str(holder.revocation)


async def test_progress_while_the_token_is_awaited_saves_the_engine() -> None:
    async with watched() as bench:
        holder = await bench.serve(streams=True)
        bench.engine.is_generating = False
        bench.engine.token_gate.clear()
        bench.passed_seconds += LIMIT_SECONDS
        async with asyncio.TaskGroup() as tasks:
            (name,) = bench.watch.find_quiet()
            tasks.create_task(bench.watch.check(name))
            await asyncio.sleep(0)
            assert bench.watch.find_quiet() == [], "it is being asked"
            holder.received = (True, 100)
            bench.engine.token_gate.set()
        assert not bench.is_ended


async def test_no_token_is_asked_of_an_engine_without_a_free_place() -> None:
    async with watched(max_in_flight=1) as bench:
        await bench.serve()
        bench.engine.is_generating = False
        await bench.look(20 * LIMIT_SECONDS)
        assert not bench.is_ended
        assert not [call for call in bench.engine.calls if call.startswith("generate")]
        bench.engine.health = Health.SILENT
        await bench.look(3 * LOOK_SECONDS)
        assert bench.is_ended


@pytest.mark.parametrize("bytes_before", [0, 100])
async def test_a_full_engine_that_gives_no_stream_a_token_is_killed_though_it_answers_health(bytes_before: int) -> None:
    async with watched(max_in_flight=2) as bench:
        stream, whole = await bench.serve(streams=True), await bench.serve()
        stream.received = (bool(bytes_before), bytes_before)
        bench.watch.find_quiet()
        await bench.look(5 * LIMIT_SECONDS - LOOK_SECONDS)
        assert not bench.is_ended
        await bench.look(2 * LOOK_SECONDS)
        assert bench.is_ended
        for holder in (stream, whole):
            await holder.wait("admitted", "revoked")
            assert "nothing to the 2 requests that take all its places" in str(holder.revocation)


async def test_a_full_engine_that_decodes_any_of_its_requests_is_left_alone() -> None:
    async with watched(max_in_flight=3) as bench:
        holders = [await bench.serve(streams=True) for _ in range(3)]
        tokens = 0

        def receive() -> None:
            nonlocal tokens
            tokens += 1
            if tokens % 29 == 0:
                holders[1].received = (True, tokens)

        await bench.look(50 * LIMIT_SECONDS, receive)
        assert not bench.is_ended


async def test_a_stream_that_has_just_been_admitted_says_nothing_about_a_full_engine() -> None:
    """The other request may have been decoded all the while, since its answer comes in one piece."""
    async with watched(max_in_flight=2) as bench:
        await bench.serve()
        streams = [await bench.serve(streams=True)]

        def retry() -> None:
            bench.runtime.access.end(streams[-1].request, Outcome.CLIENT_GONE)
            streams.append(bench.runtime.ask("a", streams=True))

        await bench.look(20 * LIMIT_SECONDS, retry)
        assert not bench.is_ended


async def test_a_full_engine_that_ends_nothing_for_very_long_is_killed() -> None:
    async with watched(max_in_flight=1) as bench:
        await bench.serve()
        await bench.look(30 * LIMIT_SECONDS - LOOK_SECONDS)
        assert not bench.is_ended
        await bench.look(2 * LOOK_SECONDS)
        assert bench.is_ended


async def test_a_model_that_left_meanwhile_is_left_alone() -> None:
    async with watched() as bench:
        bench.engine.health = Health.SILENT
        await bench.look(LIMIT_SECONDS + LOOK_SECONDS)
        await bench.runtime.operations.sleep("a")
        assert isinstance(bench.runtime.scheduler.state("a"), Asleep)
        await bench.look(10 * LIMIT_SECONDS)
        assert not bench.is_ended
        bench.engine.health = Health.ALIVE
        await bench.runtime.operations.wake("a")
        await bench.look(10 * LOOK_SECONDS)
        assert isinstance(bench.runtime.scheduler.state("a"), Serving)
        assert not bench.is_ended
