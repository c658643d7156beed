"""Evictions and wakes of every kind, and engines on which they fail."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.support.bench import DISCARD, OFFLOAD, SLOW, STOP, serving, with_flags

PAIRS = {"offload": OFFLOAD, "discard": DISCARD, "stop": STOP}
BACKOFF_SECONDS = 2.0


@pytest.mark.parametrize("eviction", PAIRS)
async def test_there_and_back(tmp_path: Path, eviction: str) -> None:
    async with serving({"a": PAIRS[eviction], "b": PAIRS[eviction]}, tmp_path) as bench:
        await bench.expect("a")
        engine = bench.engine("a")
        assert "--enable-sleep-mode" in engine.cmdline()
        await bench.expect("b")
        if eviction == "stop":
            assert not engine.is_running()
            assert {allocation.model for allocation in bench.ledger.snapshot().allocations} == {"b"}
        else:
            level = 1 if eviction == "offload" else 2
            stats = await bench.stats("a")
            assert (stats["sleeping"], stats["sleep_level"]) == (True, level)
        await bench.expect("a")
        assert (bench.engine("a") == engine) == (eviction != "stop")
        stats = await bench.stats("a")
        assert stats["garbage_tokens"] == 0
        assert stats["requests_while_asleep"] == 0


async def test_old_files_name_evictions_by_a_number(tmp_path: Path) -> None:
    async with serving({"a": {"eviction": 2}, "b": {"sleep_level": 1}}, tmp_path) as bench:
        for name in "aba":
            await bench.expect(name)
        assert await bench.process_state("b") == "sleeping:Offload+KeepRunning"
        await bench.expect("b")
        assert await bench.process_state("a") == "sleeping:Discard+KeepRunning"


async def test_a_sleep_that_fails_becomes_a_stop(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        engine = bench.engine("a")
        await bench.engine_call("a", "POST /control/fail-sleep", {"enabled": True})
        await bench.expect("b")
        assert not engine.is_running()
        assert await bench.process_state("a") == "not_started"
        await bench.expect("a")
        assert bench.starts("a") == 2


async def test_a_wake_that_fails_stops_the_model_and_leaves_the_gpu_to_the_other(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        await bench.expect("b")
        engine = bench.engine("a")
        await bench.engine_call("a", "POST /control/fail-wake", {"enabled": True})
        began_at = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.expect("a"))
            await bench.server.wait_for_log("could not bring the model onto the GPU .*model=a")
            assert not engine.is_running()
            await bench.expect("b")
            assert not waiting.done()
        assert time.monotonic() - began_at >= BACKOFF_SECONDS
        assert bench.starts("a") == 2
        await bench.expect("b")
        await bench.expect("a")


async def test_a_drain_waits_for_a_stream(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}
    async with serving(models, tmp_path, canary="off") as bench:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.expect("b"))
            await bench.until_state("switching:a->b")
            late = tasks.create_task(bench.expect("a", "late"))
            await bench.until_model("a", queue_depth=1, in_flight=1)
            assert (await bench.stats("a"))["sleeps"] == 0
            await bench.let_go("a")
            await stream.read()
            assert stream.is_complete
            await waiting
            await late
        stats = await bench.stats("a")
        assert stats["slept_under_requests"] == 0
        assert stats["request_count"] == 2


async def test_a_drain_that_takes_too_long_ends_the_stream_visibly(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}
    async with serving(models, tmp_path, drain_timeout_seconds=0.5) as bench, bench.held_stream("a") as stream:
        await bench.expect("b")
        await stream.read()
        assert not stream.is_complete
        assert '"code":"evicted"' in stream.events[-1]
        assert (await bench.stats("a"))["slept_under_requests"] == 0


async def test_without_drain_before_switch_requests_in_flight_are_aborted(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}
    policy = {"drain_before_switch": False}
    async with serving(models, tmp_path, policy=policy) as bench, bench.held_stream("a") as stream:
        await bench.expect("b")
        await stream.read()
        assert not stream.is_complete
        assert '"code":"evicted"' in stream.events[-1]
        assert (await bench.stats("a"))["slept_under_requests"] == 0


async def test_a_model_stays_for_min_active_seconds(tmp_path: Path) -> None:
    least_seconds = 1.5
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path, policy={"min_active_seconds": least_seconds}) as bench:
        await bench.expect("a")
        awake_at = time.monotonic()
        answer = await bench.expect("b")
        assert time.monotonic() - awake_at >= least_seconds - 0.2
        assert int(answer.headers["x-llmux-queue-ms"]) >= 1000
        switched_at = time.monotonic()
        assert (await bench.call("POST /control/switch", {"model": "a"})).status == 200
        assert time.monotonic() - switched_at >= least_seconds - 0.2


async def test_a_model_that_cannot_sleep_beside_the_other_is_stopped(tmp_path: Path) -> None:
    """The residue of sleepers leaves no room for another one: the cheapest of them is stopped, and no request fails."""
    async with serving({"a": OFFLOAD, "b": OFFLOAD, "c": OFFLOAD}, tmp_path, gpu_mib=1000) as bench:
        for name in "abcabc":
            await bench.expect(name)
