"""``llmux serve`` over real llama-servers: texts as from the server alone, and conversations that survive a switch."""

import asyncio
import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import pytest

from llmux.engines.llama_cpp import LlamaCpp
from llmux.simulation.engine.text import expected_text
from tests.support import real_llama
from tests.support.real_criu import CRIU
from tests.support.real_criu import SKIP_REASON as NO_CRIU
from tests.support.server import LlmuxProcess, chat, http_client, llmux_server, simulated_config

pytestmark = [
    pytest.mark.llama,
    pytest.mark.anyio,
    pytest.mark.skipif(bool(real_llama.MISSING), reason=real_llama.SKIP_REASON),
]

REQUESTS = 200
QUESTIONS = ("once upon a time", "tell me of the autumn", "an apple and a bell", "blue bread")
STARTED = r"engine started.* pid=\d+ port=(\d+)"
EVICTION_SECONDS = LlamaCpp.max_stop_seconds + 3.0
"""Until the next model answers; the rest is for its start."""
ON_PROCESSOR = (*real_llama.ONE_THREAD, "-dev", "none")


def section(model: str, *extra_args: str, **more: Any) -> dict[str, Any]:
    return {
        "engine": "llama_cpp",
        "model_path": str(real_llama.model_path(model)),
        "command": real_llama.program(),
        "extra_args": [*ON_PROCESSOR, *extra_args],
        **more,
    }


def config(directory: Path, models: Mapping[str, Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    policy = {"policy_type": "fifo", "min_active_seconds": 0.0}
    ports = {"port": 0, "metrics_port": 0}
    return {**ports, "policy": policy, "models": models, "cache_dir": str(directory / "cache"), **more}


async def ask(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> str:
    """The text of a chat's answer, streamed or not."""
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        if not body.get("stream"):
            return str((await response.json())["choices"][0]["message"]["content"])
        text, lines = "", (await response.text()).splitlines()
        assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]", lines[-3:]
        for line in lines:
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
        return text


def question(model: str, number: int, **more: Any) -> dict[str, Any]:
    return chat(model, QUESTIONS[number % len(QUESTIONS)], temperature=0, **more)


@pytest.mark.timeout(600)
async def test_two_models_alternate_and_say_what_each_says_alone(tmp_path: Path) -> None:
    alone = {}
    async with http_client() as session:
        for model in "ab":
            async with real_llama.running(real_llama.model_path(model), "-np", "1", directory=tmp_path) as server:
                url = server.url
                for number in range(len(QUESTIONS)):
                    alone[model, number] = await ask(session, url, question(model, number))
        assert len(set(alone.values())) == len(alone)
        models = {model: section(model, "-c", "2048") for model in "ab"}
        async with llmux_server(config(tmp_path, models), tmp_path) as llmux:
            for number in range(REQUESTS):
                model, asked = "ab"[number % 2], (number // 2) % len(QUESTIONS)
                body = question(model, asked, stream=number % 3 == 0)
                assert await ask(session, llmux.url, body) == alone[model, asked], number
            assert len(llmux.find_in_log(STARTED)) == REQUESTS
            assert not llmux.find_in_log("eviction failed")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    text: str
    cached: int
    read: int
    first_token_seconds: float


async def converse(
    session: aiohttp.ClientSession, llmux: LlmuxProcess, prompt: str, tokens: int, model: str = "slow"
) -> Turn:
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    began, first, text, timings = monotonic(), 0.0, "", {}
    limit = aiohttp.ClientTimeout(total=real_llama.REQUEST_SECONDS)
    async with session.post(f"{llmux.url}/v1/completions", json=body, timeout=limit) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                timings = event.get("timings") or timings
                text += "".join(choice["text"] for choice in event["choices"])
                first = first or monotonic() - began
    return Turn(text, timings["cache_n"], timings["prompt_n"], first)


@pytest.mark.timeout(900)
async def test_a_conversation_survives_a_switch_away_and_back(tmp_path: Path) -> None:
    models = {"slow": section("slow", "-c", "4352"), "b": section("b", "-c", "2048")}
    async with llmux_server(config(tmp_path, models), tmp_path) as llmux, http_client() as session:
        first = await converse(session, llmux, real_llama.words(3900), 100)
        await ask(session, llmux.url, question("b", 0))
        again = f"{real_llama.words(3900)}{first.text} {real_llama.words(20, seed=1)}"
        second = await converse(session, llmux, again, 2)
        saved = await llmux.wait_for_log("prompts saved")
        restored = await llmux.wait_for_log("prompts restored")
    logging.getLogger(__name__).info("%s\n%s\n%s", saved.string, restored.string, (first, second))
    assert first.read >= 3900
    assert second.cached + second.read >= 4000
    assert second.read <= 0.05 * (second.cached + second.read)
    # The time includes the switch. Without the file it would have to read even more than the first time.
    assert 5 * second.first_token_seconds < first.first_token_seconds


async def test_an_engine_with_a_client_of_its_own_ends_within_its_limit(tmp_path: Path) -> None:
    """After SIGTERM llama-server waits for its clients, for ever."""
    models = {"slow": section("slow", "-c", "2048"), "b": section("b", "-c", "2048")}
    async with llmux_server(config(tmp_path, models), tmp_path) as llmux, http_client() as session:
        await ask(session, llmux.url, question("slow", 0, max_tokens=1))
        port = llmux.find_in_log(STARTED)[-1][1]
        body = chat("slow", "hello", stream=True, max_tokens=1000)
        async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            began = monotonic()
            await ask(session, llmux.url, question("b", 0))
            assert monotonic() - began < EVICTION_SECONDS
        assert llmux.find_in_log("busy|answering a request"), "its slot cannot be saved, and that is said"


async def rest_of(response: aiohttp.ClientResponse) -> bytes:
    """What else comes of an answer that breaks off."""
    rest = b""
    with suppress(aiohttp.ClientPayloadError):
        async for piece in response.content.iter_any():
            rest += piece
    return rest


async def test_a_stream_that_is_cut_off_by_a_switch_does_not_hold_it_up(tmp_path: Path) -> None:
    models = {"slow": section("slow", "-c", "2048", drain="abort"), "b": section("b", "-c", "2048")}
    async with llmux_server(config(tmp_path, models), tmp_path) as llmux, http_client() as session:
        body = chat("slow", "hello", stream=True, max_tokens=1000)
        async with session.post(f"{llmux.url}/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            began = monotonic()
            async with asyncio.TaskGroup() as tasks:
                rest = tasks.create_task(rest_of(response))
                await ask(session, llmux.url, question("b", 0))
            assert monotonic() - began < EVICTION_SECONDS
        assert b'"error"' in rest.result() and b"[DONE]" not in rest.result()


async def test_it_takes_turns_with_a_simulated_vllm_on_one_gpu(tmp_path: Path) -> None:
    simulated = simulated_config({"v": {"eviction": "offload+keep_running"}}, ledger=tmp_path / "ledger")
    models = {**simulated["models"], "a": section("a", "-c", "2048")}
    both = {**simulated, "models": models, "cache_dir": str(tmp_path / "cache")}
    async with llmux_server(both, tmp_path) as llmux, http_client() as session:
        first = await ask(session, llmux.url, question("a", 0))
        for _ in range(5):
            assert await ask(session, llmux.url, chat("v", "hello")) == expected_text("v", "hello", 8)
            assert await ask(session, llmux.url, question("a", 0)) == first
        assert not llmux.find_in_log("eviction failed")


@pytest.mark.criu
@pytest.mark.skipif(not CRIU, reason=NO_CRIU)
async def test_a_stream_is_frozen_in_an_image_and_goes_on(tmp_path: Path) -> None:
    frozen = section("slow", "-c", "2048", eviction="retain+checkpoint", drain="freeze")
    models = {"slow": frozen, "b": section("b", "-c", "2048")}
    images = {"criu_path": CRIU, "images_dir": str(tmp_path / "images")}
    async with llmux_server(config(tmp_path, models, checkpoint=images), tmp_path) as llmux, http_client() as session:
        body = question("slow", 0, stream=True, max_tokens=30)
        alone = await ask(session, llmux.url, body)
        async with asyncio.TaskGroup() as tasks:
            stream = tasks.create_task(ask(session, llmux.url, body))
            await llmux_is_answering(session, llmux, "slow")
            other = tasks.create_task(ask(session, llmux.url, question("b", 0)))
        assert other.result()
        assert stream.result() == alone
        assert llmux.find_in_log("dumped") and llmux.find_in_log("restored ")


@pytest.mark.criu
@pytest.mark.skipif(not CRIU, reason=NO_CRIU)
async def test_a_conversation_that_is_younger_than_the_image_survives_too(tmp_path: Path) -> None:
    """The second eviction stops the engine, whose image is kept from the first one."""
    models = {"a": section("a", "-c", "2048", eviction="retain+checkpoint"), "b": section("b", "-c", "2048")}
    images = {"criu_path": CRIU, "images_dir": str(tmp_path / "images")}
    async with llmux_server(config(tmp_path, models, checkpoint=images), tmp_path) as llmux, http_client() as session:
        await converse(session, llmux, real_llama.words(100), 2, "a")
        await ask(session, llmux.url, question("b", 0))
        first = await converse(session, llmux, real_llama.words(400, seed=1), 2, "a")
        assert first.read >= 400
        await ask(session, llmux.url, question("b", 0))
        second = await converse(session, llmux, f"{real_llama.words(400, seed=1)}{first.text} apple", 2, "a")
        assert second.cached >= 400 and second.read <= 20
        assert len(llmux.find_in_log("dumped ")) == 1 and len(llmux.find_in_log(r"\] restored ")) == 2


async def llmux_is_answering(session: aiohttp.ClientSession, llmux: LlmuxProcess, model: str) -> None:
    """Return once a request of the model is in flight."""
    async with asyncio.timeout(real_llama.START_SECONDS):
        while True:
            async with session.get(f"{llmux.url}/v1/models/{model}") as response:
                if (await response.json())["in_flight"]:
                    return
            await asyncio.sleep(0.02)


async def test_an_engine_that_dies_while_it_restores_is_started_again_without_the_file(tmp_path: Path) -> None:
    models = {"a": section("a", "-c", "2048"), "b": section("b", "-c", "2048")}
    async with llmux_server(config(tmp_path, models), tmp_path) as llmux, http_client() as session:
        prompt = real_llama.words(300)
        first = await ask(session, llmux.url, chat("a", prompt, temperature=0))
        await ask(session, llmux.url, question("b", 0))
        (saved,) = (tmp_path / "cache").rglob("*.kv")
        stamp = saved.stat()
        # As long and as old as before, but not what was saved: what a damaged disk would give.
        with saved.open("r+b") as file:
            file.write(b"\0" * 64)
        os.utime(saved, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert await ask(session, llmux.url, chat("a", prompt, temperature=0)) == first
        assert not saved.exists()
        assert re.search("left_out", llmux.find_in_log("prompts restored")[-1].string)
