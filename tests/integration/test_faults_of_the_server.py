"""The end of llmux itself, asked for or not: nothing of it is left behind."""

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.bench import OFFLOAD, SLOW, STOP, Answer, Bench, eventually, nothing_left, serving, with_flags
from tests.support.command import run_llmux, write_config
from tests.support.server import SIMULATED_ENGINE

ORPHAN_SECONDS = 5.0
THREE = {
    "a": with_flags(OFFLOAD, *SLOW),
    "b": with_flags(OFFLOAD, "--sim-worker"),
    "c": with_flags(STOP, "--sim-fault", "ignore-sigterm"),
}


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


async def everybody_gone(processes: list[psutil.Process], deadline_seconds: float = ORPHAN_SECONDS) -> None:
    await eventually(lambda: not living(processes), f"the end of {processes}", deadline_seconds)


async def answers(bench: Bench, model: str, number: int) -> Answer | str:
    """One request under a server that is about to end: an answer, or how the connection ended."""
    try:
        return await bench.ask(model, f"number {number}", max_tokens=20)
    except OSError as error:
        return type(error).__name__


async def test_sigterm_under_load_drains(tmp_path: Path) -> None:
    """What is in flight ends well, what waits is told to go, and then everything is gone."""
    async with serving({**THREE, "c": STOP}, tmp_path) as bench:
        await bench.expect("b")
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            inside = [tasks.create_task(bench.expect("a", f"inside {number}")) for number in range(3)]
            await bench.until_model("a", in_flight=4)
            waiting = [tasks.create_task(bench.ask("c", f"waiting {number}")) for number in range(3)]
            await bench.until_model("c", queue_depth=3)
            family = bench.server.descendants()
            assert len(family) >= 5
            bench.server.process.send_signal(signal.SIGTERM)
            for refused in await asyncio.gather(*waiting):
                assert (refused.status, refused.code) == (503, "shutting_down")
            assert not any(task.done() for task in inside)
            await bench.let_go("a")
            await stream.read()
            assert stream.is_complete
        assert await bench.server.terminate() == 0
        await everybody_gone(family)
        await nothing_left(bench.ledger, bench.temporary)


async def test_sigterm_has_a_deadline(tmp_path: Path) -> None:
    async with serving(THREE, tmp_path, shutdown_timeout_seconds=0.5, stop_timeout_seconds=0.5) as bench:
        async with bench.held_stream("a") as stream:
            family = bench.server.descendants()
            bench.server.process.send_signal(signal.SIGTERM)
            await stream.read()
            assert not stream.is_complete
            assert '"code":"shutting_down"' in stream.events[-1]
        assert await bench.server.terminate() == 0
        await everybody_gone(family)


async def test_sigterm_does_not_wait_for_an_engine_that_hangs_in_its_sleep(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, "--sim-sleep-ms", "600000"), "b": OFFLOAD}
    async with serving(models, tmp_path, stop_timeout_seconds=0.5) as bench, asyncio.TaskGroup() as tasks:
        await bench.expect("a")
        waiting = tasks.create_task(bench.ask("b"))
        await bench.until_model("a", process_state="sleeping:Offload+KeepRunning")
        family = bench.server.descendants()
        assert await bench.server.terminate(timeout_seconds=20.0) == 0
        assert (await waiting).code == "shutting_down"
        await everybody_gone(family)


async def test_a_second_sigterm_hurries(tmp_path: Path) -> None:
    async with serving(THREE, tmp_path, shutdown_timeout_seconds=600.0) as bench, bench.held_stream("a") as stream:
        bench.server.process.send_signal(signal.SIGTERM)
        await bench.server.wait_for_log("stopping ")
        bench.server.process.send_signal(signal.SIGTERM)
        await stream.read()
        assert '"code":"shutting_down"' in stream.events[-1]
        assert await bench.server.terminate() == 0


async def test_signals_that_keep_coming_do_not_cut_the_end_short(tmp_path: Path) -> None:
    async with serving(THREE, tmp_path) as bench:
        await bench.expect("a")
        family = bench.server.descendants()
        process = bench.server.process

        async def ended() -> bool:
            if process.returncode is None:
                # Not process.send_signal: it may fetch the exit code, which asyncio then misses.
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
            return process.returncode is not None

        await eventually(ended, "the end")
        assert process.returncode == 0
        await everybody_gone(family)


async def test_sigint_is_the_same(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        family = bench.server.descendants()
        bench.server.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            assert await bench.server.process.wait() == 0
        await everybody_gone(family)


async def test_sigterm_while_an_engine_starts(tmp_path: Path) -> None:
    async with serving({"a": with_flags(STOP, "--sim-fault", "start-hang")}, tmp_path) as bench:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.ask("a"))
            await bench.server.wait_for_log("engine started")
            family = bench.server.descendants()
            began_at = time.monotonic()
            assert await bench.server.terminate() == 0
            assert time.monotonic() - began_at < 10.0
            assert (await waiting).status == 503
        await everybody_gone(family)


async def test_sigterm_while_an_engine_wakes(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        await bench.expect("b")
        await bench.engine_call("a", "POST /control/hang-wake", {"enabled": True})
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.ask("a"))
            await bench.until_internal_state("a", "waking")
            family = bench.server.descendants()
            assert await bench.server.terminate() == 0
            assert (await waiting).status == 503
        await everybody_gone(family)


async def test_sigterm_under_many_requests(tmp_path: Path) -> None:
    """Every client hears something that is true: its answer, a refusal, or nothing because it came too late."""
    async with serving({"a": OFFLOAD, "b": OFFLOAD, "c": STOP}, tmp_path) as bench:
        await bench.expect("a")
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(answers(bench, "abc"[number % 3], number)) for number in range(60)]
            await bench.until_state("switching:a->b")
            family = bench.server.descendants()
            assert await bench.server.terminate() == 0
        for number, task in enumerate(asked):
            answer = task.result()
            if isinstance(answer, str):
                continue
            assert answer.status in (200, 503), answer.text
            if answer.status == 200:
                assert answer.document["model"] == "abc"[number % 3]
            else:
                assert answer.code == "shutting_down"
        await everybody_gone(family)


async def test_sigkill_under_load_leaves_no_orphan(tmp_path: Path) -> None:
    async with serving(THREE, tmp_path) as bench:
        await bench.expect("b")
        async with bench.held_stream("a") as stream:
            waiting = await bench.begin("c")
            await bench.until_model("c", queue_depth=1)
            family = bench.server.descendants()
            assert len(family) >= 5
            bench.server.process.kill()
            await bench.server.process.wait()
            await everybody_gone(family)
            await stream.read()
            assert not stream.is_complete
            waiting.leave()
        await nothing_left(bench.ledger, bench.temporary)


async def test_sigkill_kills_engines_that_ignore_sigterm(tmp_path: Path) -> None:
    async with serving(THREE, tmp_path) as bench:
        await bench.expect("c")
        family = bench.server.descendants()
        bench.server.process.kill()
        await bench.server.process.wait()
        await everybody_gone(family)


async def test_sigkill_while_an_engine_starts(tmp_path: Path) -> None:
    async with serving({"a": with_flags(STOP, "--sim-fault", "start-hang")}, tmp_path) as bench:
        client = await bench.begin("a")
        await bench.server.wait_for_log("engine started")
        family = bench.server.descendants()
        assert len(family) == 2
        bench.server.process.kill()
        await bench.server.process.wait()
        client.leave()
        await everybody_gone(family)


async def test_a_server_that_was_killed_can_be_started_again_at_once(tmp_path: Path) -> None:
    """Ports and memory are free again, though the first one had no time for anything."""
    port = 0
    async with serving({"a": OFFLOAD}, tmp_path) as first:
        await first.expect("a")
        port = int(first.server.url.rpartition(":")[2])
        family = first.server.descendants()
        first.server.process.kill()
        await first.server.process.wait()
        await everybody_gone(family)
    async with serving({"a": OFFLOAD}, tmp_path, port=port) as second:
        await second.expect("a")


async def test_a_start_that_fails_leaves_only_its_reason_behind(tmp_path: Path) -> None:
    write_config(tmp_path, {"models": {"a": {"model_path": "a"}}, "vllm_command": SIMULATED_ENGINE})
    ended = await run_llmux("serve", directory=tmp_path, LLMUX_GPU_READER="no_function")
    assert ended.code == 1
    assert ended.errors.startswith("llmux: LLMUX_GPU_READER=no_function: this is not of the form module:function")
    assert len(ended.errors.splitlines()) == 1, ended
