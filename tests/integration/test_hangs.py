"""Engines and shims that are stopped (SIGSTOP) and so neither answer nor end, in every state a model can be in."""

import asyncio
import signal
from pathlib import Path

import psutil

from tests.support.bench import OFFLOAD, SLOW, Bench, serving, with_flags
from tests.support.processes import is_living

LIMITS = {"stop_timeout_seconds": 0.5, "shutdown_timeout_seconds": 0.5}


def shim_of(bench: Bench, model: str) -> psutil.Process:
    shim = bench.engine(model).parent()
    assert shim is not None
    return shim


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
