"""The simulated SGLang as a real process: its answers, and the mistakes that kill it."""

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from llmux.simulation.engine.text import expected_text
from llmux.simulation.ledger import Ledger
from tests.support.simulated_engine import EngineProcess, eventually, is_alive, stand_in

SAVER = ("--model-path", "m", "--enable-memory-saver", "--sim-health-poll-ms", "10")
SLOW = ("--token-ms", "20")


async def is_killed(sglang: EngineProcess) -> None:
    assert await sglang.exit_code() == -signal.SIGKILL


async def test_it_answers_as_sglang_does() -> None:
    async with stand_in("sglang", *SAVER, "--served-model-name", "name") as sglang:
        assert (await sglang.get("/health"))[0] == 200
        assert (await sglang.get("/health_generate"))[0] == 200
        _, listed = await sglang.get("/v1/models")
        assert [(one["id"], one["owned_by"]) for one in listed["data"]] == [("name", "sglang")]
        assert (await sglang.get("/get_model_info"))[1]["model_path"] == "m"
        assert (await sglang.get("/get_server_info"))[1]["enable_memory_saver"]
        assert await sglang.answer("hi", model="whatever", max_tokens=5) == expected_text("name", "hi", 5)
        _, body = await sglang.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
        assert body["choices"][0]["text"] == expected_text("name", "x", 3)
        status, body = await sglang.post("/v1/completions", {})
        assert (status, body["object"], body["code"]) == (400, "error", 400)
        assert (await sglang.stats())["request_count"] == 2


async def test_a_whole_turn_by_a_backup_and_one_by_reloading(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    memory = (
        "--sim-gpu-ledger",
        str(ledger.path),
        "--mem-fraction-static",
        "0.5",
        "--sim-free-ms",
        "50",
        "--sim-worker",
    )
    async with stand_in("sglang", *SAVER, *memory) as sglang:
        (allocation,) = ledger.snapshot().allocations
        assert (allocation.mib, allocation.pid != sglang.pid) == (500, True)

        async def free() -> bool:
            return ledger.snapshot().used_mib == 0

        assert await sglang.post("/release_memory_occupation", {"tags": ["kv_cache", "weights"]}) == (200, "")
        assert ledger.snapshot().used_mib == 500
        await eventually(free, "free memory")
        assert (await sglang.post("/resume_memory_occupation", {"tags": ["weights"]}))[0] == 200
        assert ledger.snapshot().used_mib == 250
        assert (await sglang.post("/resume_memory_occupation", {"tags": ["kv_cache"]}))[0] == 200
        assert await sglang.answer("hi", max_tokens=2) == "!!"
        status, body = await sglang.post("/update_weights_from_disk", {"model_path": "m"})
        assert (status, body["success"]) == (200, True)
        assert (await sglang.post("/flush_cache"))[0] == 200
        assert await sglang.answer("hi", max_tokens=2) == expected_text("m", "hi", 2)


async def test_a_release_goes_on_when_its_client_leaves(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    flags = ("--sim-gpu-ledger", str(ledger.path), "--sim-free-ms", "0", "--sim-release-ms", "300")
    async with stand_in("sglang", *SAVER, *flags) as sglang:

        async def releasing() -> bool:
            return bool((await sglang.stats())["sleeps"])

        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(sglang.post("/release_memory_occupation", {}))
            await eventually(releasing, "a release that has begun")
            call.cancel()

        async def free() -> bool:
            return ledger.snapshot().used_mib == 0

        await eventually(free, "free memory")


@pytest.mark.parametrize("path", ["/release_memory_occupation", "/resume_memory_occupation", "/continue_generation"])
async def test_a_body_is_required(path: str) -> None:
    async with stand_in("sglang", *SAVER) as sglang:
        assert (await sglang.post(path))[0] == 400
        assert (await sglang.get("/health"))[0] == 200


async def test_a_release_under_a_request_kills_the_process_and_its_worker(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    flags = (*SAVER, *SLOW, "--sim-gpu-ledger", str(ledger.path), "--sim-worker")
    async with stand_in("sglang", *flags) as sglang:
        body = {"prompt": "x", "max_tokens": 1000, "stream": True}
        async with sglang.session.post(sglang.url("/v1/completions"), json=body) as stream:
            await stream.content.readline()
            (worker,) = ledger.snapshot().allocations
            assert (await sglang.post("/flush_cache"))[0] == 400
            with pytest.raises(aiohttp.ClientError):
                await sglang.post("/release_memory_occupation", {})
            with pytest.raises(aiohttp.ClientError):
                await stream.content.read()
        await is_killed(sglang)
        assert "AssertionError: release_memory_occupation should be called only when" in sglang.stderr()

        async def worker_is_gone() -> bool:
            return not is_alive(worker.pid)

        await eventually(worker_is_gone, "the end of the worker")


async def test_resuming_twice_kills_it() -> None:
    async with stand_in("sglang", *SAVER, "--enable-weights-cpu-backup") as sglang:
        await sglang.post("/release_memory_occupation", {})
        await sglang.post("/resume_memory_occupation", {})
        assert await sglang.answer("hi", max_tokens=2) == expected_text("m", "hi", 2)
        with pytest.raises(aiohttp.ClientError):
            await sglang.post("/resume_memory_occupation", {})
        await is_killed(sglang)


async def test_a_generating_check_of_health_kills_it_asleep() -> None:
    async with stand_in("sglang", *SAVER) as sglang:
        await sglang.post("/release_memory_occupation", {})
        with pytest.raises(aiohttp.ClientError):
            await sglang.get("/health")
        await is_killed(sglang)


async def test_a_generating_check_of_health_fails_while_it_is_paused_and_does_no_harm() -> None:
    environment = {"SGLANG_HEALTH_CHECK_TIMEOUT": "0.1"}
    async with stand_in("sglang", *SAVER, "--enable-weights-cpu-backup", environment=environment) as sglang:
        await sglang.post("/pause_generation", {"mode": "retract"})
        await sglang.post("/release_memory_occupation", {})
        assert (await sglang.get("/health"))[0] == 503
        await sglang.post("/resume_memory_occupation", {})
        await sglang.post("/continue_generation", {})
        assert (await sglang.get("/health"))[0] == 200


async def test_a_plain_check_of_health_does_not() -> None:
    environment = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"}
    async with stand_in("sglang", *SAVER, environment=environment) as sglang:
        await sglang.post("/release_memory_occupation", {})
        assert (await sglang.get("/health"))[0] == 200


async def test_a_frozen_stream_goes_on_after_a_turn() -> None:
    async with stand_in("sglang", *SAVER, *SLOW, "--enable-weights-cpu-backup") as sglang:
        body = {"prompt": "x", "max_tokens": 10, "stream": True}
        async with sglang.session.post(sglang.url("/v1/completions"), json=body) as stream:
            begun = await stream.content.readline()
            assert (await sglang.post("/pause_generation", {"mode": "retract"}))[1]["status"] == "ok"
            assert (await sglang.post("/release_memory_occupation", {}))[0] == 200
            assert (await sglang.post("/resume_memory_occupation", {}))[0] == 200
            assert (await sglang.post("/continue_generation", {}))[1]["status"] == "ok"
            rest = await stream.text()
        assert (begun.decode() + rest).count('"text"') == 11
        assert (await sglang.stats())["tokens"] == 10


async def test_an_abort_by_rid_ends_one_request() -> None:
    async with stand_in("sglang", *SAVER, *SLOW) as sglang:
        body = {"prompt": "x", "max_tokens": 1000, "stream": True, "rid": "mine"}
        async with sglang.session.post(sglang.url("/v1/completions"), json=body) as stream:
            await stream.content.readline()
            assert (await sglang.post("/abort_request", {"rid": "mine"}))[0] == 200
            assert '"finish_reason": "abort"' in await stream.text()


async def test_the_key_guards_the_controls_too_but_not_health() -> None:
    async with stand_in("sglang", *SAVER, "--api-key", "k") as sglang:
        assert (await sglang.get("/health"))[0] == 200
        assert (await sglang.get("/v1/models"))[0] == 401
        assert (await sglang.post("/release_memory_occupation", {}))[0] == 401
        headers = {"Authorization": "Bearer k"}
        assert (await sglang.post("/release_memory_occupation", {}, headers=headers))[0] == 200


async def test_it_says_that_it_is_not_ready_while_it_warms_up() -> None:
    async with stand_in("sglang", *SAVER, "--sim-warmup-ms", "300") as sglang:
        assert (await sglang.get("/health"))[0] == 503

        async def healthy() -> bool:
            return (await sglang.get("/health"))[0] == 200

        await eventually(healthy, "the end of the warm-up")


async def test_sigterm_waits_for_requests_and_ends_it_by_sigkill() -> None:
    async with stand_in("sglang", *SAVER, "--token-ms", "5") as sglang:
        body = {"prompt": "x", "max_tokens": 30, "stream": True}
        async with sglang.session.post(sglang.url("/v1/completions"), json=body) as stream:
            await stream.content.readline()
            sglang.process.terminate()

            async def leaving() -> bool:
                return (await sglang.get("/health"))[0] == 503

            await eventually(leaving, "health saying that it stops")
            with_end = await stream.text()
        assert '"finish_reason": "length"' in with_end
        await is_killed(sglang)
