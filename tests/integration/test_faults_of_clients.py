"""Clients that leave: what they asked for is no demand any more, and a switch is not theirs to break."""

import asyncio
from pathlib import Path

from tests.support.bench import OFFLOAD, SLOW, STOP, Bench, eventually, serving, with_flags

PROMPTLY_SECONDS = 5.0


async def test_gone_while_queued_behind_a_busy_model(tmp_path: Path) -> None:
    """The switch is called off: the model in the way goes on as before, streams and all."""
    async with serving({"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}, tmp_path) as bench:
        async with bench.held_stream("a") as stream:
            waiting = [await bench.begin("b", f"number {number}") for number in range(3)]
            await bench.until_state("switching:a->b")
            for client in waiting:
                client.leave()
            await bench.until_state("active:a")
            await bench.until_model("b", queue_depth=0)
            await bench.let_go("a")
            await bench.expect("a", "beside the stream")
            await stream.read()
            assert stream.is_complete
        assert await bench.state() == "active:a"
        assert bench.starts("b") == 0


async def test_one_of_many_gone_while_queued(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}
    async with serving(models, tmp_path, canary="off") as bench:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            leaving = await bench.begin("b", "leaves")
            await bench.until_state("switching:a->b")
            tasks.create_task(bench.expect("b", "stays"))
            await bench.until_model("b", queue_depth=2)
            leaving.leave()
            await bench.until_model("b", queue_depth=1)
            assert await bench.state() == "switching:a->b"
            await bench.let_go("a")
            await stream.read()
        assert (await bench.stats("b"))["request_count"] == 1


async def test_gone_while_the_engine_starts(tmp_path: Path) -> None:
    """What has begun goes on, and the model is there for the next client; nobody else is asked for."""
    slow = with_flags(STOP, "--startup-delay-ms", "1000")
    async with serving({"a": slow, "b": STOP}, tmp_path, canary="off") as bench:
        client = await bench.begin("a")
        await bench.until_state("switching:none->a")
        client.leave()
        await bench.until_model("a", queue_depth=0)
        await bench.until_state("active:a")
        assert (await bench.stats("a"))["request_count"] == 0
        await bench.expect("a")
        assert bench.starts("a") == 1


async def test_gone_while_another_model_is_woken_and_nobody_wants_it_back(tmp_path: Path) -> None:
    slow = with_flags(OFFLOAD, "--sim-wake-ms", "500")
    async with serving({"a": slow, "b": OFFLOAD}, tmp_path, canary="off") as bench:
        await bench.expect("a")
        await bench.expect("b")
        client = await bench.begin("a")
        await bench.until_internal_state("a", "waking")
        client.leave()
        await bench.until_model("a", queue_depth=0)
        await bench.expect("b")
        assert await bench.state() == "active:b"
        assert (await bench.stats("a"))["request_count"] == 1


async def test_gone_in_mid_stream(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}, tmp_path) as bench:
        async with bench.stream("a", max_tokens=100_000) as stream:
            await stream.read(3)
            assert await running(bench, "a") == 1
            stream.leave()
            await eventually(lambda: is_idle(bench, "a"), "the engine's work was ended", PROMPTLY_SECONDS)
        await bench.until_model("a", in_flight=0)
        await bench.expect("b")
        assert (await bench.stats("a"))["slept_under_requests"] == 0


async def test_gone_before_the_first_byte(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, "--latency-ms", "60000")}, tmp_path, canary="off") as bench:
        client = await bench.begin("a")
        await bench.until_model("a", in_flight=1)
        await eventually(lambda: is_busy(bench, "a"), "the engine works")
        client.leave()
        await eventually(lambda: is_idle(bench, "a"), "the engine's work was ended", PROMPTLY_SECONDS)
        await bench.until_model("a", in_flight=0)


async def test_gone_while_draining_ends_the_drain(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}, tmp_path) as bench:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.expect("b"))
            await bench.until_state("switching:a->b")
            stream.leave()
        assert (await bench.stats("a"))["slept_under_requests"] == 0


async def running(bench: Bench, model: str) -> int:
    return int((await bench.stats(model))["running"])


async def is_idle(bench: Bench, model: str) -> bool:
    return await running(bench, model) == 0


async def is_busy(bench: Bench, model: str) -> bool:
    return await running(bench, model) > 0
