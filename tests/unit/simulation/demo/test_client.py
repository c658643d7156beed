"""A client tells a right answer from a wrong one, and a broken one from one that it left."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from llmux.simulation.demo import client
from llmux.simulation.demo.client import perform
from llmux.simulation.demo.records import Call, Ending, Kind
from llmux.simulation.engine.text import expected_text

CHAT = Call(0.0, "llama", Kind.CHAT, "Hi", 6)
STREAM = Call(0.0, "llama", Kind.CHAT_STREAM, "Hi", 6)
COMPLETION = Call(0.0, "llama", Kind.COMPLETION, "Hi", 6)
RIGHT = expected_text("llama", "Hi", 6)
OF_ANOTHER_MODEL = expected_text("qwen", "Hi", 6)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[aiohttp.ClientSession]:
    runner = web.ServerRunner(web.Server(answer))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


def whole(text: str, finish_reason: str = "length", status: int = 200) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        said = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
        headers = {"x-llmux-queue-ms": "1500"}
        return web.json_response(
            {"choices": [{**said, "finish_reason": finish_reason}]}, status=status, headers=headers
        )

    return answer


def streamed(*events: object, done: bool = True) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("data: [DONE]\n\n" if done else "")
        return web.Response(text=text, content_type="text/event-stream")

    return answer


def chunk(text: str | None, finish_reason: str | None = None) -> object:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish_reason}]}


@pytest.mark.parametrize("call", [CHAT, COMPLETION])
async def test_the_right_text_is_an_answer_and_its_wait_is_kept(call: Call) -> None:
    async with server(whole(RIGHT)) as session:
        record = await perform(session, call)
    assert (record.ending, record.wait_seconds, record.problem) == (Ending.ANSWERED, 1.5, "")


@pytest.mark.parametrize("call", [CHAT, COMPLETION])
async def test_another_models_text_is_wrong(call: Call) -> None:
    async with server(whole(OF_ANOTHER_MODEL)) as session:
        record = await perform(session, call)
    assert record.ending is Ending.WRONG
    assert OF_ANOTHER_MODEL[:20] in record.problem


async def test_a_stream_is_put_together() -> None:
    async with server(streamed(chunk(RIGHT[:9]), chunk(RIGHT[9:]), chunk(None, "length"))) as session:
        record = await perform(session, STREAM)
    assert record.ending is Ending.ANSWERED


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (streamed(chunk(RIGHT), done=False), "without \\[DONE\\]"),
        (streamed(chunk(RIGHT[:9]), {"error": {"message": "evicted"}}, done=False), "broke off: evicted"),
        (streamed(chunk(RIGHT), chunk("", "abort")), "aborted"),
        (streamed({"nothing": 1}), "KeyError"),
        (whole(RIGHT, status=503), "503"),
    ],
)
async def test_a_broken_stream_is_lost(answer: Answer, problem: str) -> None:
    async with server(answer) as session:
        record = await perform(session, STREAM)
    assert record.ending is Ending.LOST
    assert re.search(problem, record.problem)


async def test_an_aborted_answer_is_lost() -> None:
    async with server(whole(RIGHT, finish_reason="abort")) as session:
        record = await perform(session, CHAT)
    assert record.ending is Ending.LOST


async def test_nobody_there_is_lost() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # held but not listened on, so that every connection is refused
        async with aiohttp.ClientSession(f"http://127.0.0.1:{bound.getsockname()[1]}") as session:
            record = await perform(session, CHAT)
    assert record.ending is Ending.LOST
    assert "ClientConnectorError" in record.problem


async def test_a_client_without_patience_leaves() -> None:
    gone = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        await gone.wait()
        return web.Response()

    async with server(answer) as session:
        record = await perform(session, Call(0.0, "llama", Kind.CHAT, "Hi", 6, leaves_after_seconds=0.01))
        gone.set()
    assert (record.ending, record.problem) == (Ending.LEFT, "")


async def test_an_answer_that_never_comes_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PATIENCE_SECONDS", 0.01)
    gone = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        await gone.wait()
        return web.Response()

    async with server(answer) as session:
        record = await perform(session, CHAT)
        gone.set()
    assert record.ending is Ending.LOST
