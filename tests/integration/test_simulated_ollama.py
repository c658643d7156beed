"""The simulated Ollama as a real process: models that come by any request, and memory that goes after the answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.engine.text import embedding, expected_text
from llmux.simulation.ledger import Ledger
from tests.support.simulated_engine import EngineProcess, eventually, is_alive, stand_in

SLOW = ("--token-ms", "20")
MIB = 1 << 20


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "gpu.json").create(1000)


@asynccontextmanager
async def server(ledger: Ledger, *flags: str, **variables: str) -> AsyncIterator[EngineProcess]:
    """An Ollama with three models, of which two fit."""
    words = ("serve", "--sim-gpu-ledger", str(ledger.path), "--sim-models", "a=400,b=500,c=300", "--sim-free-ms", "0")
    async with stand_in("ollama", *words, *flags, environment=variables) as ollama:
        yield ollama


async def loaded(ollama: EngineProcess) -> dict[str, int]:
    """The models that /api/ps shows, with what they hold of the GPU in MiB."""
    _, body = await ollama.get("/api/ps")
    return {one["name"].removesuffix(":latest"): one["size_vram"] // MIB for one in body["models"]}


async def generate(ollama: EngineProcess, model: str, **fields: Any) -> Any:
    status, body = await ollama.post("/api/generate", {"model": model, "stream": False, **fields})
    assert status == 200, body
    return body


async def until_used(ledger: Ledger, mib: int) -> None:
    async def reached() -> bool:
        return ledger.snapshot().used_mib == mib

    await eventually(reached, f"{mib} MiB in use")


async def test_it_answers_as_ollama_does(ledger: Ledger) -> None:
    async with server(ledger) as ollama:
        assert (await ollama.get("/"))[1] == "Ollama is running"
        assert (await ollama.get("/api/tags"))[1]["models"][0]["name"] == "a:latest"
        assert (await ollama.get("/v1/models"))[1]["data"][2]["id"] == "c:latest"
        assert await loaded(ollama) == {}
        body = await generate(ollama, "a", prompt="hi", options={"num_predict": 3})
        assert (body["response"], body["done_reason"]) == (expected_text("a", "hi", 3), "stop")
        assert await ollama.answer("hi", model="a:latest", max_tokens=3) == expected_text("a", "hi", 3)
        _, body = await ollama.post("/v1/embeddings", {"model": "a", "input": "x"})
        assert body["data"][0]["embedding"] == embedding("a", "x")
        _, text = await ollama.post("/api/chat", {"model": "a", "messages": [{"role": "user", "content": "hi"}]})
        lines = [json.loads(line) for line in text.splitlines()]
        assert "".join(line["message"]["content"] for line in lines) == expected_text("a", "hi")
        assert [line["done"] for line in lines][-2:] == [False, True]
        status, body = await ollama.post("/api/generate", {"model": "none"})
        assert (status, body) == (404, {"error": "model 'none' not found"})
        assert (await ollama.ask(model="none"))[1]["error"]["type"] == "not_found_error"
        assert (await ollama.post("/api/generate", {"model": "a", "keep_alive": "soon"}))[0] == 400


async def test_any_request_loads_its_model_and_others_give_way(ledger: Ledger) -> None:
    async with server(ledger) as ollama:
        await ollama.answer(model="a")
        await ollama.post("/v1/embeddings", {"model": "b", "input": "x"})
        assert await loaded(ollama) == {"a": 400, "b": 500}
        await generate(ollama, "c")
        assert await loaded(ollama) == {"b": 500, "c": 300}
        assert not ledger.snapshot().refused


async def test_unloading_is_answered_and_shown_before_the_memory_is_free(ledger: Ledger) -> None:
    async with server(ledger, "--sim-free-ms", "300") as ollama:
        assert (await generate(ollama, "a"))["done_reason"] == "load"
        assert ledger.snapshot().used_mib == 400
        assert (await generate(ollama, "a", keep_alive=0))["done_reason"] == "unload"
        assert await loaded(ollama) == {}
        assert ledger.snapshot().used_mib == 400
        await until_used(ledger, 0)


async def test_unloading_waits_for_requests_in_flight(ledger: Ledger) -> None:
    async with server(ledger, *SLOW) as ollama:
        body = {"model": "a", "prompt": "hi", "options": {"num_predict": 10}}
        async with ollama.session.post(ollama.url("/api/generate"), json=body) as stream:
            await stream.content.readline()
            assert (await generate(ollama, "a", keep_alive=0))["done_reason"] == "unload"
            assert (await loaded(ollama), ledger.snapshot().used_mib) == ({"a": 400}, 400)
            assert (await stream.text()).count("\n") == 10
        await until_used(ledger, 0)


async def test_the_keep_alive_of_any_request_changes_how_long_a_model_stays(ledger: Ledger) -> None:
    async with server(ledger, OLLAMA_KEEP_ALIVE="-1") as ollama:
        await generate(ollama, "a", prompt="hi")
        await ollama.answer(model="a")
        assert await loaded(ollama) == {"a": 400}
        await generate(ollama, "a", prompt="hi", keep_alive="1ms")
        await until_used(ledger, 0)
    async with server(ledger, OLLAMA_KEEP_ALIVE="1ms") as ollama:
        await ollama.answer(model="a")
        await until_used(ledger, 0)
        await generate(ollama, "a", keep_alive=-1)
        await ollama.answer(model="a")
        assert await loaded(ollama) == {"a": 400}


async def test_what_does_not_fit_is_computed_by_the_cpu_in_silence(ledger: Ledger) -> None:
    async with server(ledger) as ollama:
        ledger.allocate(ollama.pid, 750, "another program")
        assert await ollama.answer("hi", model="a", max_tokens=2) == expected_text("a", "hi", 2)
        assert await loaded(ollama) == {"a": 250}
        assert not ledger.snapshot().refused


async def test_loading_goes_on_when_its_client_leaves(ledger: Ledger) -> None:
    async with server(ledger, "--sim-load-ms", "500", OLLAMA_KEEP_ALIVE="-1") as ollama:
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(ollama.post("/api/generate", {"model": "a"}))
            await until_used(ledger, 400)
            assert await loaded(ollama) == {}
            call.cancel()

        async def is_loaded() -> bool:
            return await loaded(ollama) == {"a": 400}

        await eventually(is_loaded, "the loaded model")
        await generate(ollama, "a", keep_alive=0)
        await until_used(ledger, 0)


async def test_a_busy_model_is_waited_for(ledger: Ledger) -> None:
    async with server(ledger, *SLOW, OLLAMA_MAX_LOADED_MODELS="1", OLLAMA_MAX_QUEUE="1") as ollama:
        body = {"model": "a", "prompt": "hi", "options": {"num_predict": 30}}
        async with ollama.session.post(ollama.url("/api/generate"), json=body) as stream:
            await stream.content.readline()
            others = [ollama.post("/api/generate", {"model": "b"}) for _ in range(3)]
            answers, rest = await asyncio.gather(asyncio.gather(*others), stream.text())
        assert rest.count("\n") == 30
        assert sorted(status for status, _ in answers) == [200, 503, 503]
        assert await loaded(ollama) == {"b": 500}


async def test_a_runner_that_dies_is_replaced_and_none_outlives_the_server(ledger: Ledger) -> None:
    async with server(ledger, "--sim-fault", "die-on-request:engine") as ollama:
        status, body = await ollama.post("/api/generate", {"model": "a", "prompt": "hi", "stream": False})
        assert (status, body["error"]) == (500, "llama runner process has terminated: exit status 2")
        await until_used(ledger, 0)
        await generate(ollama, "a")
        (allocation,) = (one for one in ledger.snapshot().allocations if one.mib)
        assert allocation.pid != ollama.pid
        ollama.process.kill()
        await ollama.exit_code()

        async def gone() -> bool:
            return not is_alive(allocation.pid)

        await eventually(gone, "the end of the runner")
