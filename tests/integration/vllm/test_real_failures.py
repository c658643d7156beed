"""Real vLLM engines that fail and die: a cold start at most, and no answer that is wrong or looks complete."""

import asyncio
import json
from pathlib import Path

import openai
import pytest

from tests.support.real_vllm import (
    MISSING,
    QUESTIONS,
    SKIP_REASON,
    Alone,
    Request,
    all_gone,
    alternating,
    ask,
    check,
    events,
    openai_client,
    real_config,
    real_model,
    starts,
)
from tests.support.server import LlmuxProcess, chat, llmux_server

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON), pytest.mark.timeout(420)]

DONE = b"data: [DONE]"


async def test_a_failed_sleep_and_a_failed_reload_cost_time_and_no_answer(alone: Alone, tmp_path: Path) -> None:
    models = {
        "a": real_model("a", "discard+keep_running", env={"VLLM_CPU_SLEEP_FAIL": "reload"}),
        "b": real_model("b", "offload+keep_running", env={"VLLM_CPU_SLEEP_FAIL": "sleep"}),
    }
    requests = alternating("ab", 4)
    async with llmux_server(real_config(models), tmp_path) as server, openai_client(server) as client:
        await check(client, alone, requests[0])
        await check(client, alone, requests[1])
        (first_a,), (first_b,) = starts(server, "a"), starts(server, "b")
        assert first_a.family(), "a sleeps"

        await check(client, alone, requests[2])
        assert not first_b.family(), "b could not sleep and was stopped"
        assert not first_a.family(), "a could not reload and was stopped"
        assert [one.model for one in starts(server)] == ["a", "b", "a"]

        await check(client, alone, requests[3])
        assert [one.model for one in starts(server)] == ["a", "b", "a", "b"]


async def test_engines_that_die_and_llmux_that_is_killed(alone: Alone, tmp_path: Path) -> None:
    # a runs as vLLM does by default, with its engine in a process of its own.
    models = {
        "a": real_model("a", "offload+keep_running", context=2048, env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}),
        "crash": real_model("crash", "offload+keep_running"),
    }
    request: Request = ("a", QUESTIONS[0], False)
    # With a canary the engine that dies at its first request would not even count as started.
    async with llmux_server(real_config(models, canary="off"), tmp_path) as server, openai_client(server) as client:
        await check(client, alone, request)
        await _engine_core_killed_in_mid_stream(client, server)
        killed = starts(server, "a")[-1]
        await check(client, alone, request)
        assert starts(server, "a")[-1] != killed, "the killed engine was started again"
        assert not killed.family()
        killed = starts(server, "a")[-1]
        await _whole_engine_killed_in_mid_stream(server)
        await check(client, alone, request)
        count = len(starts(server, "a"))
        assert starts(server, "a")[-1] != killed, "the killed engine was started again"

        await _engine_that_dies_at_its_first_request(client, server)
        await check(client, alone, request)
        assert len(starts(server, "a")) == count, "a slept meanwhile"
        assert len(starts(server, "crash")) == 2, "nobody starts an engine that nobody asks for"

        engines = [process for engine in starts(server) for process in engine.family()]
        assert any(process.name().startswith("VLLM::EngineCor") for process in engines)
        server.process.kill()
        await server.process.wait()
        assert await all_gone(engines, 10), "engines outlive llmux"


async def _engine_core_killed_in_mid_stream(client: openai.AsyncOpenAI, server: LlmuxProcess) -> None:
    """vLLM's front tells the client itself, by an error event, which the stock client raises."""
    for _ in range(3):
        core = starts(server, "a")[-1].child("VLLM::EngineCore")
        stream = await client.completions.create(
            model="a", prompt="Hello", max_tokens=1900, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(stream)
        core.kill()
        finish_reason = None
        try:
            async for chunk in stream:
                finish_reason = chunk.choices[0].finish_reason or finish_reason
        except openai.APIError:
            return
        # On a busy machine the client can be so late that the answer was complete before the kill; nothing else may be.
        assert finish_reason == "length", "an answer that was broken off looks complete"
        await ask(client, "a", QUESTIONS[0], is_stream=False)
    raise AssertionError("three answers were complete before the engine could be killed")


async def _whole_engine_killed_in_mid_stream(server: LlmuxProcess) -> None:
    """Nobody but llmux is left to tell the client: an error event, and no end that looks like one."""
    root = starts(server, "a")[-1].family()[0]
    body = json.dumps(chat("a", "Hello", stream=True, max_tokens=1900, temperature=0, ignore_eos=True)).encode()
    address = server.url.removeprefix("http://")
    # By hand: aiohttp drops what it has not yet handed out when a body ends early.
    reader, writer = await asyncio.open_connection(*address.split(":"))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + body)
    stream = await reader.readuntil(b"data: {")
    root.kill()
    stream += await reader.read()
    writer.close()
    await writer.wait_closed()
    assert not stream.endswith(b"0\r\n\r\n")
    assert DONE not in stream, "an answer that was broken off looks complete"
    *answer, last = events(stream)
    assert answer
    assert last["error"]["code"] == "engine_died"  # type: ignore[index]


async def _engine_that_dies_at_its_first_request(client: openai.AsyncOpenAI, server: LlmuxProcess) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(client, "crash", QUESTIONS[0], is_stream=False)
    assert caught.value.status_code == 502
    assert caught.value.code == "engine_died"
    assert caught.value.response.headers["x-llmux-error"] == "1"
    assert len(starts(server, "crash")) == 2
