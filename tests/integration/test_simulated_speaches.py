"""The simulated speaches as a real process: models that come by any request, and are not unloaded while in use."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llmux.simulation.engine.text import expected_text, transcript
from llmux.simulation.ledger import Ledger
from tests.support.simulated_engine import EngineProcess, eventually, stand_in

SMALL, VOICE = "org/small", "org/voice"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "gpu.json").create(1000)


@asynccontextmanager
async def server(ledger: Ledger, *flags: str, ttl: str = "-1") -> AsyncIterator[EngineProcess]:
    words = ("--sim-gpu-ledger", str(ledger.path), "--sim-models", f"{SMALL}=200,{VOICE}=100", "--sim-residue", "30")
    async with stand_in("speaches", *words, *flags, environment={"STT_MODEL_TTL": ttl}) as speaches:
        yield speaches


async def transcribe(speaches: EngineProcess, model: str = SMALL) -> tuple[int, Any]:
    form = aiohttp.FormData()
    form.add_field("file", b"sound", filename="a.wav")
    form.add_field("model", model)
    async with speaches.session.post(speaches.url("/v1/audio/transcriptions"), data=form) as response:
        return response.status, await response.json()


async def loaded(speaches: EngineProcess) -> list[str]:
    _, body = await speaches.get("/api/ps")
    return list(body["models"])


async def test_models_come_by_any_request_and_leave_by_a_call(ledger: Ledger) -> None:
    async with server(ledger) as speaches:
        assert (await speaches.get("/health"))[0] == 200
        assert ledger.snapshot().used_mib == 30
        assert await transcribe(speaches) == (200, {"text": transcript(SMALL, b"sound")})
        assert (await loaded(speaches), ledger.snapshot().used_mib) == ([SMALL], 230)
        body = {"model": VOICE, "input": "hi", "voice": "v"}
        async with speaches.session.post(speaches.url("/v1/audio/speech"), json=body) as response:
            assert await response.text() == expected_text(VOICE, "hi")
        assert ledger.snapshot().used_mib == 330
        assert (await speaches.delete(f"/api/ps/{SMALL}"))[0] == 200
        assert (await loaded(speaches), ledger.snapshot().used_mib) == ([VOICE], 130)
        assert (await transcribe(speaches, "none"))[0] == 404


async def test_the_answers_of_loading_and_unloading(ledger: Ledger) -> None:
    async with server(ledger) as speaches:
        path = f"/api/ps/{SMALL}"
        assert (await speaches.delete(path))[0] == 404
        assert [(await speaches.post(path))[0] for _ in range(2)] == [201, 409]
        assert [(await speaches.delete(path))[0] for _ in range(2)] == [200, 404]
        assert (await speaches.post("/api/ps/none"))[0] == 404


async def test_a_model_whose_client_leaves_is_not_half_loaded(ledger: Ledger) -> None:
    async with server(ledger, "--sim-load-ms", "60000") as speaches:

        async def loading() -> bool:
            return ledger.snapshot().used_mib == 230

        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(speaches.post(f"/api/ps/{SMALL}"))
            await eventually(loading, "a model that is loading")
            call.cancel()

        async def freed() -> bool:
            return ledger.snapshot().used_mib == 30

        await eventually(freed, "freed memory")
        assert await loaded(speaches) == []


async def test_a_model_in_use_is_not_unloaded(ledger: Ledger) -> None:
    async with server(ledger, "--latency-ms", "500") as speaches:

        async def in_use() -> bool:
            return (await speaches.delete(f"/api/ps/{SMALL}"))[0] == 409

        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(transcribe(speaches))
            await eventually(in_use, "a model in use")
        assert answer.result()[0] == 200
        assert await loaded(speaches) == [SMALL]


async def test_it_unloads_by_itself_after_a_time(ledger: Ledger) -> None:
    async with server(ledger, ttl="0") as speaches:
        await transcribe(speaches)

        async def freed() -> bool:
            return ledger.snapshot().used_mib == 30

        await eventually(freed, "freed memory")
        assert await loaded(speaches) == []


async def test_too_little_memory_fails_the_request_alone(ledger: Ledger) -> None:
    async with server(ledger) as speaches:
        ledger.allocate(1, 900, "another")
        assert (await transcribe(speaches))[0] == 500
        ledger.release(1)
        assert (await transcribe(speaches))[0] == 200
