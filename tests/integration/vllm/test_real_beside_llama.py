"""The real vLLM and the real llama-server take turns under one llmux, each saying what it says alone."""

from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.support import real_llama
from tests.support.bench import eventually
from tests.support.real_criu import CRIU, nothing_left
from tests.support.real_criu import SKIP_REASON as NO_CRIU
from tests.support.real_vllm import (
    MAX_TOKENS,
    MISSING,
    QUESTIONS,
    SKIP_REASON,
    Alone,
    ask,
    openai_client,
    real_config,
    real_model,
    starts,
    switches,
)
from tests.support.server import LlmuxProcess, chat, http_client, llmux_server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.llama,
    pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON),
    pytest.mark.skipif(bool(real_llama.MISSING), reason=real_llama.SKIP_REASON),
    pytest.mark.timeout(420),
]

ROUNDS = 10
ROUNDS_WITH_IMAGES = 4
CONTEXT = ("-c", "2048", "-np", "1")


def llama_model(eviction: str) -> dict[str, Any]:
    return {
        "engine": "llama_cpp",
        "model_path": str(real_llama.model_path("b")),
        "command": real_llama.program(),
        "eviction": eviction,
        "extra_args": [*real_llama.ONE_THREAD, "-dev", "none", *CONTEXT],
    }


async def llamas_answers(directory: Path) -> list[str]:
    """What llama-server says to the questions when it is asked without llmux."""
    async with real_llama.running(real_llama.model_path("b"), *CONTEXT, directory=directory) as server:
        async with http_client() as session:
            return [await said(session, server.url, prompt) for prompt, _ in QUESTIONS[:ROUNDS]]


async def said(session: aiohttp.ClientSession, url: str, prompt: str) -> str:
    body = chat("llama", prompt, max_tokens=MAX_TOKENS, temperature=0)
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return str((await response.json())["choices"][0]["message"]["content"])


async def take_turns(
    client: openai.AsyncOpenAI, server: LlmuxProcess, alone: Alone, llama_alone: list[str], rounds: int
) -> None:
    """One request for the one and one for the other, each of which needs a switch."""
    async with http_client() as session:
        for number, question in enumerate(QUESTIONS[:rounds]):
            answer = await ask(client, "a", question, is_stream=bool(number % 2))
            assert answer.text == alone["a"][question], question
            assert await said(session, server.url, question[0]) == llama_alone[number], question
    # The last answer may be here before the last line of the log.
    await eventually(lambda: switches(server) == 2 * rounds, "a switch for each request")
    assert not server.find_in_log("eviction failed|unfaithful|sleeps instead")


async def test_they_take_turns(alone: Alone, tmp_path: Path) -> None:
    models = {"a": real_model("a", "offload+keep_running"), "llama": llama_model("retain+stop")}
    llama_alone = await llamas_answers(tmp_path)
    settings = real_config(models, cache_dir=str(tmp_path / "cache"))
    async with llmux_server(settings, tmp_path) as server, openai_client(server) as client:
        await take_turns(client, server, alone, llama_alone, ROUNDS)
        assert len(starts(server, "a")) == 1 and len(starts(server, "llama")) == ROUNDS
        assert await server.terminate() == 0


@pytest.mark.criu
@pytest.mark.skipif(not CRIU, reason=NO_CRIU)
async def test_they_take_turns_through_images_of_both(alone: Alone, tmp_path: Path) -> None:
    models = {"a": real_model("a", "discard+checkpoint"), "llama": llama_model("retain+checkpoint")}
    llama_alone = await llamas_answers(tmp_path)
    checkpoint = {"criu_path": CRIU, "images_dir": str(tmp_path / "images"), "keep_images": False}
    settings = real_config(models, checkpoint=checkpoint, cache_dir=str(tmp_path / "cache"))
    with nothing_left():
        async with llmux_server(settings, tmp_path) as server, openai_client(server) as client:
            await take_turns(client, server, alone, llama_alone, ROUNDS_WITH_IMAGES)
            assert len(starts(server)) == 2, "each engine was started once, and came from an image from then on"
            for model in ("a", "llama"):
                assert server.find_in_log(rf"dumped .*model={model}$")
                assert len(server.find_in_log(rf"restored .*model={model} ")) == ROUNDS_WITH_IMAGES - 1
            assert await server.terminate() == 0
