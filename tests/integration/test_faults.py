"""Engines that fail in every state, on real processes: nobody's request is lost, and nothing wedges."""

import asyncio
import json
import socket
import time
from pathlib import Path

import pytest

from llmux.simulation.engine.text import expected_text
from tests.support.bench import DISCARD, OFFLOAD, SLOW, STOP, Answer, Bench, eventually, serving, with_flags

PROMPTLY_SECONDS = 5.0


async def test_killed_while_serving(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        bench.engine("a").kill()
        await bench.until_model("a", on_gpu=False)
        await bench.expect("a")
        assert bench.starts("a") == 2
        await bench.expect("b")


async def test_killed_while_serving_and_asked_at_the_same_moment(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        for number in range(2):
            await bench.expect("a")
            bench.engine("a").kill()
            await bench.expect("a", f"number {number}")


async def test_killed_while_starting(tmp_path: Path) -> None:
    trigger = tmp_path / "hangs"
    trigger.touch()
    models = {"a": with_flags(STOP, "--sim-fault", f"start-hang@{trigger}"), "b": STOP}
    async with serving(models, tmp_path) as bench:
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.ask("a"))
            await bench.server.wait_for_log("engine started .*model=a")
            trigger.unlink()
            killed_at = time.monotonic()
            bench.engine("a").kill()
            answer = await waiting
        assert time.monotonic() - killed_at < PROMPTLY_SECONDS
        assert (answer.status, answer.code) == (503, "model_unavailable")
        assert "signal 9" in answer.text or "SIGKILL" in answer.text
        await bench.expect("b")
        await eventually(lambda: answered(bench, "a"), "a is served again after the back-off")


async def test_killed_in_mid_stream(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW)}, tmp_path) as bench:
        async with bench.held_stream("a") as stream:
            bench.engine("a").kill()
            await stream.read()
            assert not stream.is_complete
            assert not stream.ended
            error = json.loads(stream.events[-1])["error"]
            assert (error["type"], error["code"]) == ("server_error", "engine_died")
        await bench.expect("a", "again")


async def test_killed_under_an_answer_that_has_not_begun(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW)}, tmp_path) as bench:
        await bench.expect("a", max_tokens=1)
        await bench.hold("a")
        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(bench.expect("a", f"number {number}"))
            await bench.until_model("a", in_flight=5)
            await eventually(lambda: at_engine(bench, "a", 5), "all are at the engine")
            bench.engine("a").kill()
        assert bench.starts("a") == 2


async def test_killed_while_asleep(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        await bench.expect("b")
        bench.engine("a").kill()
        await bench.until_model("a", process_state="not_started")
        await bench.expect("a")
        assert bench.starts("a") == 2
        assert bench.starts("b") == 1


async def test_killed_while_asleep_and_woken_at_the_same_moment(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        for _ in range(2):
            await bench.expect("b")
            bench.engine("a").kill()
            await bench.expect("a")


async def test_killed_shim(tmp_path: Path) -> None:
    """Nobody is left who would notice the engine's end, so it is ended, and started again."""
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        engine = bench.engine("a")
        shim = engine.parent()
        assert shim is not None
        shim.kill()
        await eventually(lambda: not engine.is_running(), "the engine ended with its shim")
        await bench.expect("a")
        assert bench.starts("a") == 2


async def printed(bench: Bench, model: str, words: str, answer: Answer) -> None:
    """What the engine printed last is the operator's to know, not the client's."""
    assert words not in answer.text
    assert words in (await bench.call(f"GET /control/models/{model}/logs")).text
    assert words in (await bench.call(f"GET /control/models/{model}/story")).text


async def test_a_start_that_hangs(tmp_path: Path) -> None:
    models = {"a": with_flags(STOP, "--sim-fault", "start-hang"), "b": STOP}
    async with serving(models, tmp_path, start_timeout_seconds=2.0) as bench:
        began_at = time.monotonic()
        answer = await bench.ask("a")
        assert 1.9 <= time.monotonic() - began_at < 2.0 + PROMPTLY_SECONDS
        assert (answer.status, answer.code) == (503, "model_unavailable")
        assert "longer than 2 s" in answer.text
        await printed(bench, "a", "Initializing a V1 LLM engine", answer)
        await bench.expect("b")


async def test_a_wait_that_ends_during_a_start_says_so(tmp_path: Path) -> None:
    models = {"a": with_flags(STOP, "--startup-delay-ms", "3000")}
    async with serving(models, tmp_path, policy={"request_timeout_seconds": 0.5}) as bench:
        answer = await bench.ask("a")
        assert (answer.status, answer.code) == (504, "queue_timeout")
        assert "it is still starting, " in answer.text
        assert answer.headers["Retry-After"] == "10"
        assert (await bench.status())["models"]["a"]["waking_seconds"] > 0
        await bench.until_model("a", process_state="running")
        assert (await bench.ask("a")).status == 200


async def test_a_start_that_exits(tmp_path: Path) -> None:
    trigger = tmp_path / "exits"
    trigger.touch()
    models = {"a": with_flags(STOP, "--sim-fault", f"start-exit:7@{trigger}"), "b": STOP}
    async with serving(models, tmp_path) as bench:
        began_at = time.monotonic()
        answers = await asyncio.gather(bench.ask("a", "one"), bench.ask("a", "two"))
        assert time.monotonic() - began_at < PROMPTLY_SECONDS
        for answer in answers:
            assert (answer.status, answer.code) == (503, "model_unavailable")
            assert "exit code 7" in answer.text
            await printed(bench, "a", "injected failure of the start", answer)
            assert 1 <= int(answer.headers["Retry-After"]) <= 2
        while_backing_off = await bench.ask("a")
        assert while_backing_off.status == 503
        assert bench.starts("a") == 1
        await bench.expect("b")
        trigger.unlink()
        await eventually(lambda: answered(bench, "a"), "a is served after the back-off")
        assert bench.starts("a") == 2


async def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    async with serving({"a": {**STOP, "command": "/does/not/exist"}, "b": STOP}, tmp_path) as bench:
        answer = await bench.ask("a")
        assert answer.status == 503
        assert "/does/not/exist" in answer.text
        await bench.expect("b")


async def test_a_reload_that_fails(tmp_path: Path) -> None:
    async with serving({"a": DISCARD, "b": DISCARD}, tmp_path) as bench:
        await bench.expect("a")
        await bench.expect("b")
        await bench.engine_call("a", "POST /control/fail-reload", {"enabled": True})
        await bench.expect("a")
        assert bench.starts("a") == 2


async def test_a_wake_that_hangs(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path, wake_timeout_seconds=1.0) as bench:
        await bench.expect("a")
        await bench.expect("b")
        await bench.engine_call("a", "POST /control/hang-wake", {"enabled": True})
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.expect("a"))
            await bench.until_state("switching:b->a")
            tasks.create_task(bench.expect("b"))
        assert bench.starts("a") == 2
        assert bench.starts("b") == 1


async def test_killed_while_waking(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        await bench.expect("b")
        await bench.engine_call("a", "POST /control/hang-wake", {"enabled": True})
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(bench.expect("a"))
            await bench.until_internal_state("a", "waking")
            bench.engine("a").kill()
            await waiting
        assert bench.starts("a") == 2


async def test_death_as_of_vllm_is_no_answer(tmp_path: Path) -> None:
    """A dying vLLM answers 500 and ends with exit code 0: the client gets its answer from the next engine."""
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a", "before")
        await bench.engine_call("a", "POST /control/die-on-request", {"enabled": True})
        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(bench.expect("a", f"number {number}"))
        assert bench.starts("a") == 2


async def test_death_as_of_vllm_in_mid_stream(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW)}, tmp_path) as bench:
        async with bench.held_stream("a") as stream:
            await bench.engine_call("a", "POST /control/die", {})
            await stream.read()
            assert any("error" in json.loads(event) for event in stream.events if event != "[DONE]")
        await bench.expect("a", "again")


async def test_an_error_of_a_living_engine_is_an_answer(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        answer = await bench.call("POST /v1/no/such/endpoint", {"model": "a"})
        assert answer.status == 404
        assert "x-llmux-error" not in answer.headers
        assert bench.starts("a") == 1


@pytest.mark.parametrize("how", ["engine", pytest.param("exit", marks=pytest.mark.slow)])
async def test_a_model_that_dies_at_every_first_request_does_not_loop(tmp_path: Path, how: str) -> None:
    models = {"a": with_flags(OFFLOAD, "--sim-fault", f"die-on-request:{how}"), "b": OFFLOAD}
    async with serving(models, tmp_path, canary="off") as bench:
        answer = await bench.ask("a")
        assert (answer.status, answer.code) == (502, "engine_died")
        assert bench.starts("a") == 2
        again = await bench.ask("a")
        assert again.status in (502, 503)
        assert bench.starts("a") <= 3
        await bench.expect("b")


@pytest.mark.parametrize("how", ["engine", pytest.param("exit", marks=pytest.mark.slow)])
async def test_a_model_that_dies_of_the_canary_was_never_started(tmp_path: Path, how: str) -> None:
    models = {"a": with_flags(OFFLOAD, "--sim-fault", f"die-on-request:{how}"), "b": OFFLOAD}
    async with serving(models, tmp_path) as bench:
        answer = await bench.ask("a")
        assert (answer.status, answer.code) == (503, "model_unavailable")
        await printed(bench, "a", "no kernel for this head size", answer)
        assert bench.starts("a") == 1
        assert int(answer.headers["retry-after"]) >= 1
        await bench.expect("b")
        assert not bench.server.find_in_log("Traceback|RuntimeError")


async def test_an_engine_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with serving({"a": {**STOP, "port": port}, "b": STOP}, tmp_path) as bench:
            answer = await bench.ask("a")
            assert answer.status == 503
            assert str(port) in answer.text
            await bench.expect("b")


@pytest.mark.parametrize("fault", ["ignore-sigterm", pytest.param("sigterm-hangs", marks=pytest.mark.slow)])
async def test_an_engine_that_does_not_end_is_killed(tmp_path: Path, fault: str) -> None:
    models = {"a": with_flags(STOP, "--sim-fault", fault), "b": STOP}
    async with serving(models, tmp_path, stop_timeout_seconds=0.5) as bench:
        await bench.expect("a")
        engine = bench.engine("a")
        await bench.expect("b")
        assert not engine.is_running()


async def test_nobody_is_woken_before_a_worker_that_outlives_its_root_is_gone(tmp_path: Path) -> None:
    """The worker holds the memory for 3 s longer; whoever is woken before gets none, and the ledger tells."""
    models = {"a": with_flags(STOP, "--sim-worker"), "b": STOP}
    async with serving(models, tmp_path) as bench:
        for name in "aba":
            await bench.expect(name)
        bench.engine("a").kill()
        await bench.expect("b")
        assert bench.ledger.snapshot().refused == ()


async def test_a_worker_that_dies_takes_its_engine_along(tmp_path: Path) -> None:
    async with serving({"a": with_flags(STOP, "--sim-worker")}, tmp_path) as bench:
        await bench.expect("a")
        (worker,) = bench.engine("a").children()
        worker.kill()
        await bench.until_state("idle")
        await bench.expect("a")
        assert bench.starts("a") == 2


async def test_one_stream_each_over_a_crash(tmp_path: Path) -> None:
    """Streams that have begun end with an error; those that have not begun are answered in full by the next engine."""
    async with serving({"a": with_flags(OFFLOAD, *SLOW, "--max-num-seqs", "1")}, tmp_path) as bench:
        async with bench.held_stream("a", "first") as first:
            second = await bench.begin("a", "second", stream=True, max_tokens=20)
            await bench.until_model("a", queue_depth=1)
            bench.engine("a").kill()
            assert await second.read_head() == 200
            await second.read()
            await first.read()
        assert second.said == expected_text("a", "second", 20)
        assert second.is_complete
        second.leave()
        assert not first.is_complete


async def answered(bench: Bench, model: str) -> bool:
    return (await bench.ask(model)).status == 200


async def at_engine(bench: Bench, model: str, count: int) -> bool:
    stats = await bench.stats(model)
    return bool(stats["running"] + stats["waiting"] == count)


async def test_weights_for_which_the_host_has_no_memory_are_discarded(tmp_path: Path):
    models = {"a": with_flags(OFFLOAD, "--sim-reload-ms", "1"), "b": OFFLOAD}
    async with serving(models, tmp_path, host_memory_reserve_mib=1 << 30) as bench:
        await bench.expect("a")
        await bench.expect("b")
        assert await bench.process_state("a") == "sleeping:Discard+KeepRunning"
        assert (await bench.stats("a"))["sleep_level"] == 2
        await bench.expect("a", "again")
        assert bench.starts("a") == 1


async def test_a_sleeper_that_cannot_go_deeper_stays_as_it_is(tmp_path: Path):
    """There is nothing here that could suspend it. What it still holds of the GPU is no sign that it lies."""
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        assert (await bench.call("POST /control/sleep", {"model": "a"})).status == 200
        deeper = {"model": "a", "eviction": {"weights": "offload", "process": "cuda_suspend"}}
        assert (await bench.call("POST /control/sleep", deeper)).status == 200
        assert bench.server.find_in_log("the GPU was not suspended, the engine sleeps instead")
        assert await bench.process_state("a") == "sleeping:Offload+KeepRunning"
        await bench.expect("a", "again")
        assert bench.starts("a") == 1
