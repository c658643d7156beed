"""Engines and shims that are stopped (SIGSTOP) and so neither answer nor end, in every state a model can be in."""

import asyncio
import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.bench import OFFLOAD, SLOW, Bench, eventually, serving, with_flags
from tests.support.processes import is_living

STALL_SECONDS = 1.2
LIMITS = {"engine_stall_seconds": STALL_SECONDS, "stop_timeout_seconds": 0.5, "shutdown_timeout_seconds": 0.5}


def shim_of(bench: Bench, model: str) -> psutil.Process:
    shim = bench.engine(model).parent()
    assert shim is not None
    return shim


async def stalls(bench: Bench, model: str) -> int:
    return int((await bench.status())["models"][model]["stalls"])


async def test_an_engine_that_hangs_while_it_serves(tmp_path: Path) -> None:
    """What has no byte of its answer yet is answered by the next engine; a stream ends with the reason."""
    async with serving({"a": with_flags(OFFLOAD, *SLOW)}, tmp_path, **LIMITS) as bench:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            engine = bench.engine("a")
            engine.suspend()
            for number in range(5):
                tasks.create_task(bench.expect("a", f"number {number}", max_tokens=1))
            await stream.read()
            error = json.loads(stream.events[-1])["error"]
            assert error["code"] == "engine_died"
            assert "the engine hangs: no progress for" in error["message"]
            assert not stream.is_complete
        assert not is_living(engine.pid)
        assert bench.starts("a") == 2
        assert bench.server.find_in_log("killing an engine that hangs")
        entry = (await bench.status())["models"]["a"]
        assert (entry["stalls"], "/health failed 3 times" in entry["last_stall"]) == (1, True)
        assert 'llmux_engine_stalls_total{model="a"} 1.0' in (await bench.call("GET /metrics")).text


async def test_an_idle_engine_that_hangs_is_replaced_before_anybody_asks(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path, **LIMITS) as bench:
        await bench.expect("a")
        engine = bench.engine("a")
        engine.suspend()
        await bench.until_model("a", stalls=1)
        await eventually(lambda: not is_living(engine.pid), "the end of the engine")
        await bench.expect("a")


async def test_a_worker_that_hangs_behind_a_front_that_answers(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, "--sim-worker", "--sim-worker-linger-ms", "0")}
    async with serving(models, tmp_path, **{**LIMITS, "engine_stall_seconds": 0.4}) as bench:
        await bench.expect("a")
        (worker,) = bench.engine("a").children()
        worker.suspend()
        # Its front may answer once more before it hears of it.
        while is_living(worker.pid):
            await bench.expect("a", "again")
        entry = (await bench.status())["models"]["a"]
        assert "not a question for one token within 2 s" in entry["last_stall"]


async def test_a_worker_that_hangs_with_all_places_taken(tmp_path: Path) -> None:
    """No question can be asked of it; its own requests say that nothing comes."""
    flags = ("--sim-worker", "--sim-worker-linger-ms", "0")
    models = {"a": {**with_flags(OFFLOAD, *flags, *SLOW), "max_in_flight": 1}}
    async with serving(models, tmp_path, **{**LIMITS, "engine_stall_seconds": 0.2}) as bench:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            (worker,) = bench.engine("a").children()
            worker.suspend()
            tasks.create_task(bench.expect("a", "the next", max_tokens=1))
            await stream.read()
            assert json.loads(stream.events[-1])["error"]["code"] == "engine_died"
        assert not is_living(worker.pid)
        entry = (await bench.status())["models"]["a"]
        assert "nothing to the 1 requests that take all its places" in entry["last_stall"]


async def test_a_busy_engine_is_not_taken_for_one_that_hangs(tmp_path: Path) -> None:
    """An answer that is not streamed, of several times the limit."""
    models = {"a": with_flags(OFFLOAD, "--token-ms", "100")}
    async with serving(models, tmp_path, **{**LIMITS, "engine_stall_seconds": 0.4}) as bench:
        await bench.expect("a", max_tokens=25)
        assert await stalls(bench, "a") == 0
        assert bench.server.find_in_log("asking the engine for one token")


@pytest.mark.slow
@pytest.mark.parametrize("who", ["engine", "worker"])
@pytest.mark.parametrize("state", ["falling asleep", "asleep"])
async def test_hangs_off_the_gpu_end_with_the_time_of_a_sleep_or_a_wake(tmp_path: Path, who: str, state: str) -> None:
    models = {"a": with_flags(OFFLOAD, "--sim-worker", "--sim-worker-linger-ms", "0"), "b": OFFLOAD}
    limits = {"sleep_timeout_seconds": 1.0, "wake_timeout_seconds": 1.0}
    async with serving(models, tmp_path, **LIMITS, **limits) as bench:
        await bench.expect("a")
        if state == "asleep":
            await bench.expect("b")
        engine = bench.engine("a")
        (engine if who == "engine" else engine.children()[0]).suspend()
        await bench.expect("b", "the place is free")
        await bench.expect("a", "by another engine")
        assert bench.starts("a") == 2
        assert not is_living(engine.pid)


@pytest.mark.slow
async def test_a_hang_in_a_start_ends_with_the_time_of_a_start(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, "--startup-delay-ms", "600000"), "b": OFFLOAD}
    async with serving(models, tmp_path, **LIMITS, start_timeout_seconds=2.0) as bench:
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(bench.ask("a"))
            await bench.server.wait_for_log("engine started .*model=a")
            engine = bench.engine("a")
            engine.suspend()
        answer = starting.result()
        assert (answer.status, answer.code) == (503, "model_unavailable")
        assert not is_living(engine.pid)


@pytest.mark.slow
async def test_a_shim_that_hangs_does_not_hold_up_the_next_engine(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path, **LIMITS) as bench:
        await bench.expect("a")
        engine, shim = bench.engine("a"), shim_of(bench, "a")
        shim.send_signal(signal.SIGSTOP)
        engine.kill()
        await bench.expect("a", "again")
        assert bench.starts("a") == 2
        assert bench.server.find_in_log("killing a shim that hangs")
        assert not is_living(shim.pid)


async def test_a_shim_that_hangs_is_killed_when_its_model_is_to_leave(tmp_path: Path) -> None:
    models = {"a": {"eviction": "retain+stop"}, "b": OFFLOAD}
    async with serving(models, tmp_path, **LIMITS) as bench:
        await bench.expect("a")
        engine, shim = bench.engine("a"), shim_of(bench, "a")
        shim.send_signal(signal.SIGSTOP)
        await bench.expect("b")
        assert not is_living(engine.pid)
        assert not is_living(shim.pid)


@pytest.mark.slow
async def test_sigterm_ends_shims_that_hang(tmp_path: Path) -> None:
    """That of a serving engine with a stream, and that of a sleeping one."""
    models = {"asleep": OFFLOAD, "serving": with_flags(OFFLOAD, *SLOW)}
    async with serving(models, tmp_path, **LIMITS) as bench:
        await bench.expect("asleep")
        async with bench.held_stream("serving") as stream:
            family = bench.server.descendants()
            for model in models:
                shim_of(bench, model).send_signal(signal.SIGSTOP)
            assert await bench.server.terminate(timeout_seconds=25.0) == 0
            await stream.read()
            assert not stream.is_complete
        assert not [one for one in family if is_living(one.pid)]


async def test_sigterm_ends_the_shim_that_hangs_under_a_start(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, "--sim-fault", "start-hang")}, tmp_path, **LIMITS) as bench:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.ask("a"))
            await bench.server.wait_for_log("engine started")
            family = bench.server.descendants()
            shim_of(bench, "a").send_signal(signal.SIGSTOP)
            assert await bench.server.terminate(timeout_seconds=25.0) == 0
            assert (await waiting).status == 503
        assert not [one for one in family if is_living(one.pid)]
