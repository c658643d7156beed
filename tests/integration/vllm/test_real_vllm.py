"""llmux over the real vLLM on the CPU: the same answers as from the engine alone, through switches of every kind."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from time import monotonic

import aiohttp
import openai
import pytest

from tests.support.real_vllm import (
    MISSING,
    QUESTIONS,
    REQUEST_SECONDS,
    SKIP_REASON,
    Alone,
    Request,
    StartedEngine,
    all_gone,
    alternating,
    check,
    events,
    openai_client,
    real_config,
    real_model,
    set_eviction,
    starts,
    switches,
)
from tests.support.server import LlmuxProcess, chat, http_client, llmux_server

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON), pytest.mark.timeout(420)]

DONE = b"data: [DONE]"


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


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlmuxProcess]:
    """One server for all of these tests, because a start takes longer than most of them."""
    models = {name: real_model(name, "offload+keep_running", kv_cache="256M") for name in "ab"}
    models["c"] = real_model("c", "offload+keep_running")
    async with llmux_server(real_config(models), tmp_path_factory.mktemp("server")) as running:
        yield running
        engines = [process for engine in starts(running) for process in engine.family()]
        assert engines
        assert await running.terminate() == 0
        assert await all_gone(engines, 0), "llmux ended before its engines"


@pytest.mark.parametrize("eviction", ["offload+keep_running", "discard+keep_running", "retain+keep_running"])
async def test_a_hundred_alternating_requests_get_the_engines_own_answers(
    alone: Alone, server: LlmuxProcess, eviction: str
) -> None:
    requests = alternating("ab", 100)
    async with openai_client(server) as client:
        await set_eviction(server, "ab", eviction)
        await check(client, alone, ("b", QUESTIONS[0], False))
        switches_before = switches(server)
        await check(client, alone, requests[0])
        (a,), (b,) = starts(server, "a"), starts(server, "b")
        awake_mib = a.memory_mib()
        await check(client, alone, requests[1])
        asleep_mib = a.memory_mib()
        assert awake_mib - asleep_mib > 200, "the KV cache alone is 256 MiB"
        assert await is_sleeping(a)
        assert not await is_sleeping(b)

        for request in requests[2:40]:
            await check(client, alone, request)
        assert switches(server) - switches_before == 40, "each of the first forty needed a switch"
        await check_at_once(client, alone, requests[40:], clients=8)
        assert starts(server, "a") == [a] and starts(server, "b") == [b], "they slept and woke from then on"
        assert not server.find_in_log("offloaded too"), "it knows how to release its KV cache alone"


async def test_a_client_that_leaves_and_a_switch_that_waits(alone: Alone, server: LlmuxProcess) -> None:
    async with openai_client(server) as client, http_client() as session:
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


async def test_models_that_stop_are_started_again(alone: Alone, server: LlmuxProcess) -> None:
    async with openai_client(server) as client:
        for request in alternating("ab", 2):
            await check(client, alone, request)
        await set_eviction(server, "ab", "retain+stop")
        count = len(starts(server))
        # a sleeps, and b serves: each of them is stopped, b first, and then started.
        for number, request in enumerate(alternating("ab", 3)):
            leaves = starts(server, "ba"[number % 2])[-1]
            await check(client, alone, request)
            assert not leaves.family(), "what was stopped is gone before the next one answers"
            assert len(starts(server)) == count + number
