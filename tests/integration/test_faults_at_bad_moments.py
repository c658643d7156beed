"""Engines that freeze or die, and servers that are stopped, in the middle of a transition."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.support.bench import DISCARD, OFFLOAD, SLOW, STOP, serving, with_flags

SLOW_TO_SLEEP = with_flags(OFFLOAD, "--sim-sleep-ms", "1500")


async def test_killed_while_falling_asleep(tmp_path: Path) -> None:
    async with serving({"a": SLOW_TO_SLEEP, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.expect("b"))
            await bench.until_internal_state("a", "evicting")
            bench.engine("a").kill()
        assert await bench.process_state("a") == "not_started"
        await bench.expect("a")


async def test_killed_while_draining(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}, tmp_path) as bench:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.expect("b"))
            await bench.until_internal_state("a", "draining")
            bench.engine("a").kill()
            await stream.read()
            assert not stream.is_complete
        await bench.expect("a")


async def test_a_frozen_engine_is_stopped_when_its_place_is_wanted(tmp_path: Path) -> None:
    """It answers nothing any more, neither /health nor /sleep nor SIGTERM; only SIGKILL moves it."""
    limits = {"drain_timeout_seconds": 0.5, "sleep_timeout_seconds": 0.5, "stop_timeout_seconds": 0.5}
    async with serving({"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}, tmp_path, **limits) as bench:
        async with bench.held_stream("a") as stream:
            engine = bench.engine("a")
            engine.send_signal(signal.SIGSTOP)
            await bench.expect("b")
            await stream.read()
            assert '"code":"evicted"' in stream.events[-1]
        assert not engine.is_running()
        await bench.expect("a")


async def test_a_frozen_engine_does_not_hold_up_the_end(tmp_path: Path) -> None:
    limits = {"shutdown_timeout_seconds": 0.5, "stop_timeout_seconds": 0.5}
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path, **limits) as bench:
        await bench.expect("a")
        await bench.expect("b")
        for name in "ab":
            bench.engine(name).send_signal(signal.SIGSTOP)
        assert await bench.server.terminate(15) == 0


async def test_sigterm_while_an_engine_falls_asleep(tmp_path: Path) -> None:
    async with serving({"a": SLOW_TO_SLEEP, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.ask("b"))
            await bench.until_internal_state("a", "evicting")
            assert await bench.server.terminate() == 0
            assert (await waiting).code == "shutting_down"


async def test_the_operator_puts_a_model_to_sleep_that_a_client_brings(tmp_path: Path) -> None:
    """The client's request is not lost, whichever of the two is served first."""
    async with serving({"a": with_flags(OFFLOAD, "--startup-delay-ms", "500"), "b": OFFLOAD}, tmp_path) as bench:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.expect("a"))
            await bench.until_internal_state("a", "waking")
            slept = tasks.create_task(bench.call("POST /control/sleep", {"model": "a"}))
        assert slept.result().status == 200
        await bench.expect("b")


@pytest.mark.parametrize(
    "settings",
    [OFFLOAD, pytest.param(DISCARD, marks=pytest.mark.slow), pytest.param(STOP, marks=pytest.mark.slow)],
    ids=["offload", "discard", "stop"],
)
async def test_a_client_that_leaves_as_its_model_leaves(tmp_path: Path, settings: dict[str, str]) -> None:
    """The engine is not put to sleep before it has seen that the client is gone."""
    models = {"a": with_flags(settings, "--token-ms", "5", "--sim-reload-ms", "1"), "b": OFFLOAD}
    async with serving(models, tmp_path) as bench:
        slept_under_requests = 0
        for number in range(15 if settings is not STOP else 3):
            async with bench.stream("a", f"number {number}", max_tokens=10_000) as stream, asyncio.TaskGroup() as tasks:
                await stream.read(2)
                tasks.create_task(bench.expect("b", f"number {number}"))
                await bench.until_internal_state("a", "draining")
                stream.leave()
            if settings is not STOP:
                slept_under_requests = (await bench.stats("a"))["slept_under_requests"]
        assert slept_under_requests == 0


async def test_many_switches_back_and_forth_by_the_operator(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        calls = [
            bench.call(f"POST /control/{('switch', 'sleep', 'wake')[number % 3]}", {"model": "ab"[number % 2]})
            for number in range(30)
        ]
        answers = await asyncio.gather(*calls)
        assert {answer.status for answer in answers} == {200}
        for name in "ab":
            await bench.expect(name)


async def test_an_engine_that_dies_again_and_again_while_asleep(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        for count in range(1, 4):
            await bench.expect("a")
            await bench.expect("b")
            bench.engine("a").kill()
            await bench.until_model("a", process_state="not_started")
            assert bench.starts("a") == count
        assert bench.starts("b") == 1
