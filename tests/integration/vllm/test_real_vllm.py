"""llmux over the real vLLM on the CPU: the same answers as from the engine alone, through switches and failures."""

import asyncio
import json
import re
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from time import monotonic

import aiohttp
import openai
import pytest

from tests.support.real_vllm import (
    MISSING,
    QUESTIONS,
    REQUEST_SECONDS,
    SKIP_REASON,
    Question,
    StartedEngine,
    all_gone,
    ask,
    openai_client,
    real_config,
    real_model,
    starts,
    switches,
)
from tests.support.server import LlmuxProcess, chat, http_client, llmux_server

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON), pytest.mark.timeout(420)]

Alone = dict[str, dict[Question, str]]
Request = tuple[str, Question, bool]
"""The model, what it is asked, and whether the answer is to be streamed."""

DONE = b"data: [DONE]"


def alternating(models: str, count: int) -> list[Request]:
    """Requests for one model and the other in turn, over all questions, streamed or not."""
    questions = cycle(question for question in QUESTIONS for _ in models)
    is_stream = cycle([False] * len(models) + [True] * len(models) + [True] * len(models))
    return list(islice(zip(cycle(models), questions, is_stream, strict=False), count))


async def check(client: openai.AsyncOpenAI, alone: Alone, request: Request) -> None:
    """The answer is the one that the engine alone gives."""
    model, question, is_stream = request
    answer = await ask(client, model, question, is_stream=is_stream)
    assert answer.text == alone[model[0]][question], f"{model} {question} {is_stream=}"
    assert answer.finish_reason in ("stop", "length")
    assert answer.model == model


async def check_at_once(client: openai.AsyncOpenAI, alone: Alone, requests: list[Request], clients: int) -> None:
    """The same from several clients at a time."""
    remaining = iter(requests)

    async def work() -> None:
        for request in remaining:
            await check(client, alone, request)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(work())


async def read_stream(
    session: aiohttp.ClientSession,
    server: LlmuxProcess,
    model: str,
    tokens: int,
    on_first_text: Callable[[], None] = lambda: None,
) -> bytes:
    """The whole of a streamed chat answer, as bytes."""
    body = chat(model, "Hello", stream=True, max_tokens=tokens, temperature=0, ignore_eos=True)
    received = b""
    limit = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with session.post(f"{server.url}/v1/chat/completions", json=body, timeout=limit) as response:
        assert response.status == 200, await response.text()
        async for piece in response.content.iter_any():
            if not received:
                on_first_text()
            received += piece
    return received


def events(stream: bytes) -> list[dict[str, object]]:
    """The JSON documents of a stream."""
    lines = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


async def running(engine: StartedEngine) -> int:
    """How many requests the engine says it works on."""
    async with engine.open() as session, session.get("/metrics") as response:
        text = await response.text()
    values = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
    assert values
    return round(sum(float(value) for value in values))


async def is_sleeping(engine: StartedEngine) -> bool:
    async with engine.open() as session, session.get("/is_sleeping") as response:
        return bool((await response.json())["is_sleeping"])


@pytest.mark.parametrize("eviction", ["offload+keep_running", "discard+keep_running"])
async def test_a_hundred_alternating_requests_get_the_engines_own_answers(
    alone: Alone, tmp_path: Path, eviction: str
) -> None:
    config = real_config({name: real_model(name, eviction, kv_cache="256M") for name in "ab"})
    requests = alternating("ab", 100)
    async with llmux_server(config, tmp_path) as server, openai_client(server) as client:
        await check(client, alone, requests[0])
        (a,) = starts(server, "a")
        awake_mib = a.memory_mib()
        await check(client, alone, requests[1])
        asleep_mib = a.memory_mib()
        assert awake_mib - asleep_mib > 200, "the KV cache alone is 256 MiB"
        assert await is_sleeping(a)
        (b,) = starts(server, "b")
        assert not await is_sleeping(b)

        for request in requests[2:60]:
            await check(client, alone, request)
        assert switches(server) == 60, "each of the first sixty needed a switch"
        await check_at_once(client, alone, requests[60:], clients=8)
        assert len(starts(server)) == 2, "each engine was started once, and slept and woke from then on"


async def test_models_that_stop_are_started_again(alone: Alone, tmp_path: Path) -> None:
    config = real_config({name: real_model(name, "retain+stop") for name in "ab"})
    async with llmux_server(config, tmp_path) as server, openai_client(server) as client:
        for number, request in enumerate(alternating("ab", 6), 1):
            await check(client, alone, request)
            before = starts(server)[:-1]
            assert len(before) == number - 1
            assert not any(engine.family() for engine in before), "what was stopped is gone before the next one answers"
        last = starts(server)[-1].family()
        assert last
        assert await server.terminate() == 0
        assert await all_gone(last, 0), "llmux ended before its engine"


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


async def test_a_client_that_leaves_and_a_switch_that_waits(alone: Alone, tmp_path: Path) -> None:
    models = {
        "a": real_model("a", "offload+keep_running"),
        "c": real_model("c", "offload+keep_running"),
    }
    async with (
        llmux_server(real_config(models), tmp_path) as server,
        openai_client(server) as client,
        http_client() as session,
    ):
        whole = events(await read_stream(session, server, "c", 60))
        (c,) = starts(server, "c")
        await _leave_in_mid_stream(session, server, c)

        asked = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            stream = tasks.create_task(read_stream(session, server, "c", 60, on_first_text=asked.set))
            await asked.wait()
            await check(client, alone, ("a", QUESTIONS[0], False))
            assert stream.done(), "the switch did not wait for the answer in flight"
        received = stream.result()
        assert texts(events(received)) == texts(whole), "the answer that a switch waited for is not the whole one"
        assert DONE in received
        assert b'"abort"' not in received
        assert await is_sleeping(c)


async def _leave_in_mid_stream(session: aiohttp.ClientSession, server: LlmuxProcess, engine: StartedEngine) -> None:
    body = chat("c", "Hello", stream=True, max_tokens=450, ignore_eos=True)
    async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
        await response.content.readany()
        assert await running(engine) == 1
        response.close()
    left_at = monotonic()
    while await running(engine):
        assert monotonic() - left_at < 2, "the engine works on for a client that has left"
        await asyncio.sleep(0.02)


def texts(documents: list[dict[str, object]]) -> list[object]:
    """What a stream said and why it ended, without what differs each time."""
    return [choice for document in documents for choice in document["choices"]]  # type: ignore[attr-defined]
