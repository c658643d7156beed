"""Warm-up: every model is started, sent one prompt, and put to sleep; llmux listens meanwhile, unlike 0.7.7."""

import asyncio
import re
import socket
from pathlib import Path

import pytest

from llmux.simulation.ledger import Ledger
from tests.support.bench import DISCARD, OFFLOAD, STOP, eventually, serving, with_flags
from tests.support.server import SIMULATED_ENGINE, WARM, ended_early, simulated_config
from tests.support.simulated_engine import gated_engine


async def test_all_models_end_asleep_and_none_is_active(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": DISCARD, "c": STOP}, tmp_path, warmup=True, canary="off") as bench:
        status = await bench.status()
        assert (status["state"], status["active_model"]) == ("idle", None)
        states = {name: model["process_state"] for name, model in status["models"].items()}
        assert states == {
            "a": "sleeping:Offload+KeepRunning",
            "b": "sleeping:Discard+KeepRunning",
            "c": "not_started",
        }
        for name in "ab":
            stats = await bench.stats(name)
            assert (stats["sleeping"], stats["request_count"], stats["sleeps"]) == (True, 1, 1)
        lines = [line for line in bench.server.log if "warmed up" in line or "listening" in line or WARM in line]
        assert len(lines) == 5
        assert "listening" in lines[0]
        assert WARM in lines[-1]
        for name in "abc":
            await bench.expect(name)
        assert [bench.starts(name) for name in "abc"] == [1, 1, 2]


@pytest.mark.parametrize(
    "fault", ["start-exit:3", *(pytest.param(one, marks=pytest.mark.slow) for one in ("die-on-request", "start-hang"))]
)
async def test_a_failed_warm_up_ends_the_program(tmp_path: Path, fault: str) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    models = {"a": OFFLOAD, "b": with_flags(OFFLOAD, "--sim-fault", fault)}
    # Short only where it is waited for: the other model has to start within it too, on a machine that is busy.
    limit_seconds = 5.0 if fault == "start-hang" else 30.0
    config = simulated_config(models, ledger=ledger.path, warmup=True, start_timeout_seconds=limit_seconds)
    code, log = await ended_early(config, tmp_path)
    assert code == 1
    assert WARM not in log
    assert "warm-up of 'b' failed" in log
    assert "Traceback" not in log
    assert ledger.snapshot().allocations == ()


async def test_a_model_that_cannot_sleep_is_stopped_instead(tmp_path: Path) -> None:
    async with serving(
        {"a": with_flags(OFFLOAD, "--sim-fault", "sleep-500")}, tmp_path, warmup=True, canary="off"
    ) as bench:
        assert await bench.process_state("a") == "not_started"
        await bench.expect("a")


async def test_it_listens_first_and_says_how_far_it_is(tmp_path: Path) -> None:
    engine, gate = gated_engine(tmp_path)
    models = {"a": OFFLOAD, "b": OFFLOAD}
    async with (
        serving(models, tmp_path, waits_until_warm=False, warmup=True, vllm_command=engine) as bench,
        asyncio.TaskGroup() as tasks,
    ):
        await bench.server.wait_for_log("engine started .*model=a")
        asked = [tasks.create_task(bench.expect(model, "early")) for model in "ba"]
        await bench.until_model("b", queue_depth=1)
        assert (await bench.call("GET /health")).status == 200
        ready = await bench.call("GET /ready")
        assert ready.status == 503
        assert ready.document["status"] == "not ready"
        assert re.fullmatch(r"warming up 1 of 2: a, \d+ s", ready.document["reason"])
        assert (await bench.call("GET /metrics")).status == 200
        assert (await bench.call("GET /v1/models")).status == 200
        assert not any(task.done() for task in asked)
        gate.touch()
        await bench.server.wait_for_log(WARM)

        async def is_ready() -> bool:
            return (await bench.call("GET /ready")).status == 200

        await eventually(is_ready, "ready")


async def test_requests_for_every_model_neither_fail_nor_disturb_it(tmp_path: Path) -> None:
    models = {"a": OFFLOAD, "b": DISCARD, "c": STOP}
    async with serving(models, tmp_path, waits_until_warm=False, warmup=True) as bench:
        async with asyncio.TaskGroup() as tasks:
            for number in range(30):
                tasks.create_task(bench.expect("abc"[number % 3], f"number {number}"))
        await bench.server.wait_for_log(WARM)
        assert bench.server.find_in_log("not asked") == []
        for model in "abc":
            await bench.expect(model)


async def test_sigterm_during_the_warm_up(tmp_path: Path) -> None:
    engine, _ = gated_engine(tmp_path)
    models = {"a": OFFLOAD, "b": OFFLOAD}
    async with serving(models, tmp_path, waits_until_warm=False, warmup=True, vllm_command=engine) as bench:
        await bench.server.wait_for_log("engine started .*model=a")
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(bench.ask("a"))
            await bench.until_model("a", queue_depth=1)
            assert await bench.server.terminate() == 0
        assert asked.result().code == "shutting_down"
        assert bench.server.find_in_log("Traceback") == []


@pytest.mark.parametrize("key", ["port", "metrics_port", "admin_port"])
async def test_a_port_that_is_taken_is_found_before_any_engine_is_started(tmp_path: Path, key: str) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = simulated_config({"a": OFFLOAD}, ledger=ledger.path, warmup=True, **{key: port})
        code, log = await ended_early(config, tmp_path)
    assert code == 1
    assert f"127.0.0.1:{port}" in log
    assert "engine started" not in log


async def test_an_engine_that_answers_no_such_question_is_warm_once_it_has_started(tmp_path: Path) -> None:
    painter = {
        "engine": "command",
        "start_command": [SIMULATED_ENGINE, "--sim-kind", "images", "--model", "p", "--port", "{port}"],
    }
    async with serving({"a": OFFLOAD, "p": painter}, tmp_path, warmup=True) as bench:
        assert bench.server.find_in_log("started, and answers no such question")
        assert bench.server.find_in_log("warmed up .*model=p")
        await bench.expect("a")
