"""The simulated engine as real processes: its memory, its faults and its ends."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from llmux.simulation.engine.text import expected_text
from llmux.simulation.ledger import Ledger
from tests.support.simulated_engine import EngineProcess, engine, eventually, is_alive, launched


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "gpu.json").create(1000)


def on(ledger: Ledger, mib: int = 800, residue_mib: int = 50) -> tuple[str, ...]:
    return ("--sim-gpu-ledger", str(ledger.path), "--sim-gpu-memory", str(mib), "--sim-residue", str(residue_mib))


async def test_sleep_frees_the_virtual_gpu_down_to_the_residue_and_waking_takes_it_in_stages(ledger: Ledger) -> None:
    async with engine(*on(ledger), model="a") as model:
        used = [ledger.snapshot().used_mib]
        for path in ("/sleep?level=2", "/wake_up?tags=weights", "/wake_up?tags=kv_cache"):
            await model.post(path)
            used.append(ledger.snapshot().used_mib)
        assert used == [800, 50, 425, 800]
        assert [(allocation.model, allocation.pid) for allocation in ledger.snapshot().allocations] == [
            ("a", model.pid)
        ]
    assert ledger.snapshot().allocations == ()


async def test_two_that_do_not_fit_together(ledger: Ledger) -> None:
    async with engine(*on(ledger), model="a") as first:
        async with launched("serve", "b", "--port", "0", *on(ledger)) as second:
            assert await second.exit_code() == 1
            assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 800.00 MiB" in second.stderr()
        assert [refusal.model for refusal in ledger.snapshot().refused] == ["b"]
        await first.post("/sleep?level=1")
        async with engine(*on(ledger), model="b"):
            status, body = await first.post("/wake_up")
            assert (status, body["error"]["code"]) == (500, 500)
            assert (await first.get("/health"))[0] == 503
            assert "CUDA out of memory" in first.stderr()
            assert await first.exit_code() == 0
        assert ledger.snapshot().peak_mib == 850


async def test_without_a_figure_it_takes_what_gpu_memory_utilization_says(ledger: Ledger) -> None:
    flags = ("--sim-gpu-ledger", str(ledger.path), "--gpu-memory-utilization", "0.5")
    async with engine(*flags):
        assert ledger.snapshot().used_mib == 500


async def test_a_missing_ledger_fails_the_start(tmp_path: Path) -> None:
    async with launched("serve", "m", "--port", "0", "--sim-gpu-ledger", str(tmp_path / "none")) as model:
        assert await model.exit_code() == 1
        assert "cannot be opened" in model.stderr()


def resident_mib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


async def test_held_memory_is_real_and_given_back() -> None:
    async with engine("--sim-hold-memory", "128") as model:
        awake = resident_mib(model.pid)
        await model.post("/sleep?level=1")
        assert resident_mib(model.pid) <= awake - 60
        await model.post("/wake_up")
        await model.post("/sleep?level=2")
        assert resident_mib(model.pid) <= awake - 120
        await model.post("/wake_up")
        assert resident_mib(model.pid) >= awake - 4


async def test_a_worker_outlives_its_root_and_holds_the_memory_until_it_is_gone(ledger: Ledger) -> None:
    async with engine(*on(ledger), "--sim-worker", "--sim-worker-linger-ms", "400") as model:
        (allocation,) = ledger.snapshot().allocations
        assert allocation.pid != model.pid
        os.kill(model.pid, signal.SIGKILL)
        await model.exit_code()
        assert is_alive(allocation.pid)
        assert ledger.snapshot().used_mib == 800

        async def freed() -> bool:
            return not ledger.snapshot().allocations

        await eventually(freed, "the worker is gone")


async def test_the_death_of_the_worker_is_the_death_of_the_engine(ledger: Ledger) -> None:
    async with engine(*on(ledger), "--sim-worker") as model:
        (allocation,) = ledger.snapshot().allocations
        os.kill(allocation.pid, signal.SIGKILL)
        assert await model.exit_code() == 0
        assert ledger.snapshot().allocations == ()


async def test_a_stopped_worker_stops_the_engine_but_not_its_front() -> None:
    async with engine("--sim-worker") as model:
        (worker,) = psutil.Process(model.pid).children()
        worker.suspend()
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(model.answer())
            await model.running(1)
            assert (await model.get("/health"))[0] == 200
            assert not asking.done()
            worker.resume()
        assert asking.result()


async def test_killing_the_group_ends_the_worker_at_once(ledger: Ledger) -> None:
    async with engine(*on(ledger), "--sim-worker", "--sim-worker-linger-ms", "60000") as model:
        os.killpg(model.pid, signal.SIGKILL)
        await model.exit_code()

        async def freed() -> bool:
            return not ledger.snapshot().allocations

        await eventually(freed, "the worker is gone")


async def test_a_start_that_fails() -> None:
    async with launched("serve", "m", "--port", "0", "--sim-fault", "start-exit:3") as model:
        assert await model.exit_code() == 3


async def test_a_start_that_hangs_is_ended_by_sigterm() -> None:
    async with launched("serve", "m", "--port", "0", "--sim-fault", "start-hang") as model:

        async def started() -> bool:
            return "Initializing" in model.stderr()

        await eventually(started, "it has begun to start")
        os.kill(model.pid, signal.SIGTERM)
        assert await model.exit_code() == -signal.SIGTERM


async def test_a_port_in_use_fails_the_start() -> None:
    async with engine() as first, launched("serve", "m", "--port", str(first.port)) as second:
        assert await second.exit_code() == 1
        assert "Address already in use" in second.stderr()


async def test_a_failed_sleep_leaves_it_paused_and_a_wake_recovers_it() -> None:
    async with engine("--sim-fault", "sleep-500:1") as model:
        assert (await model.post("/sleep"))[0] == 500
        assert (await model.get("/is_paused"))[1] == {"is_paused": True}
        assert (await model.stats())["sleep_level"] == 0
        assert (await model.post("/wake_up"))[0] == 200
        assert await model.answer() == expected_text("model", "hello")
        assert (await model.post("/sleep"))[0] == 200


async def test_failures_of_waking_and_reloading() -> None:
    async with engine("--sim-fault", "wake-500:1", "--sim-reload-ms", "0") as model:
        await model.post("/sleep?level=2")
        assert (await model.post("/wake_up"))[0] == 500
        assert (await model.post("/wake_up"))[0] == 200
        await model.post("/control/fail-reload", {"enabled": True})
        assert (await model.post("/collective_rpc", {"method": "reload_weights"}))[0] == 500
        assert await model.answer(max_tokens=2) == "!!"
        await model.post("/control/fail-reload", {"enabled": False})
        assert (await model.post("/collective_rpc", {"method": "reload_weights"}))[0] == 200
        assert await model.answer(max_tokens=2) == expected_text("model", "hello", 2)
        assert (await model.post("/collective_rpc", {"method": "nonsense"}))[0] == 500


async def test_a_wake_that_hangs() -> None:
    async with engine() as model:
        await model.post("/sleep")
        await model.post("/control/hang-wake", {"enabled": True})
        with pytest.raises(TimeoutError):
            await model.post("/wake_up", timeout=aiohttp.ClientTimeout(total=0.1))
        await model.post("/control/hang-wake", {"enabled": False})
        assert (await model.get("/is_sleeping"))[1] == {"is_sleeping": True}
        assert (await model.post("/wake_up"))[1] == {"status": "awake", "tags": None}


async def test_dying_at_the_first_request_looks_like_an_answer() -> None:
    async with engine("--sim-fault", "die-on-request") as model:
        assert (await model.get("/health"))[0] == 200
        status, body = await model.ask()
        assert (status, body["error"]["type"]) == (500, "InternalServerError")
        assert (await model.get("/health"))[0] == 503
        assert await model.exit_code() == 0


async def test_dying_in_mid_stream_ends_the_stream_with_an_error_under_200() -> None:
    async with engine() as model:
        await model.post("/control/die-after-tokens", {"tokens": 3})
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        async with model.session.post(model.url("/v1/chat/completions"), json=body) as response:
            assert response.status == 200
            lines = (await response.text()).split("\n\n")
        assert sum('"delta": {"content": ' in line for line in lines) == 3
        assert '"error"' in lines[-3]
        assert lines[-2] == "data: [DONE]"
        assert await model.exit_code() == 0


async def test_exiting_cuts_every_connection() -> None:
    async with engine("--latency-ms", "60000") as model, asyncio.TaskGroup() as tasks:
        cut = tasks.create_task(broken(model.ask()))
        await model.running(1)
        await broken(model.post("/control/die", {"how": "exit"}))
        await cut
        assert await model.exit_code() == 1


async def broken(request: Coroutine[Any, Any, object]) -> None:
    with pytest.raises(aiohttp.ClientConnectionError):
        await request


async def test_a_dead_engine_core_can_be_kept_on_show() -> None:
    async with engine(environment={"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}) as model:
        await model.post("/control/die", {"how": "engine"})
        assert (await model.get("/health"))[0] == 503
        assert (await model.ask())[0] == 500
        assert (await model.post("/sleep"))[0] == 500
        assert (await model.get("/v1/models"))[0] == 200


async def test_sigterm_ends_an_idle_engine_and_answers_those_in_flight_with_500() -> None:
    async with engine("--latency-ms", "60000") as model, asyncio.TaskGroup() as tasks:
        request = tasks.create_task(model.ask())
        await model.running(1)
        os.kill(model.pid, signal.SIGTERM)
        assert (await request)[0] == 500
        assert await model.exit_code() == 0


async def test_a_shutdown_timeout_lets_them_end() -> None:
    async with engine("--token-ms", "10", "--shutdown-timeout", "30") as model, asyncio.TaskGroup() as tasks:
        request = tasks.create_task(model.answer(max_tokens=20))
        await model.running(1)
        os.kill(model.pid, signal.SIGTERM)
        assert await request == expected_text("model", "hello", 20)
        assert await model.exit_code() == 0


async def test_sigterm_can_hang_until_the_clients_have_left() -> None:
    async with engine("--token-ms", "10", "--sim-fault", "sigterm-hangs") as model:
        request = model.ask(max_tokens=100_000)
        await hangs_until_left(model, request)
        assert await model.exit_code() == 0


async def hangs_until_left(model: EngineProcess, request: Coroutine[Any, Any, object]) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(request)
        await model.running(1)
        os.kill(model.pid, signal.SIGTERM)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.process.wait(), 0.3)
        waiting.cancel()


async def test_sigterm_can_be_ignored() -> None:
    async with engine("--sim-fault", "ignore-sigterm") as model:
        os.kill(model.pid, signal.SIGTERM)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.process.wait(), 0.3)
        assert (await model.get("/health"))[0] == 200


async def test_adapters_without_lora_end_the_start() -> None:
    async with launched("serve", "m", "--port", "0", "--lora-modules", "sql=/lora/sql") as model:
        assert await model.exit_code() == 1
        assert "LoRA is not enabled. Use --enable-lora to enable LoRA." in model.stderr()


MESSAGE = {"model": "model", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}


async def test_a_message_that_its_engine_does_not_survive() -> None:
    async with engine("--sim-fault", "die-after-tokens:2") as model:
        async with model.session.post(model.url("/v1/messages"), json={**MESSAGE, "stream": True}) as response:
            *_, last = [line async for line in response.content if line.startswith(b"data: ")]
        assert b'"type": "internal_error"' in last
        status, body = await model.post("/v1/messages", MESSAGE)
        assert (status, body["type"], body["error"]["type"]) == (500, "error", "InternalServerError")


async def test_a_response_that_its_engine_does_not_survive_is_cut_off() -> None:
    async with engine("--sim-fault", "die-after-tokens:2") as model:
        body = {"input": "x", "stream": True}
        async with model.session.post(model.url("/v1/responses"), json=body) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        assert (await model.post("/v1/responses", {"input": "x"}))[0] == 500
