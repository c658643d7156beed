from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmux.simulation.replay.client import PATH, Heard, ask, body_of
from llmux.simulation.workload.call import TracedCall

CALL = TracedCall(0.0, "a", 7, 9)
EVENT = b'data: {"choices": [{"text": "x"}]}\n\n'
DONE = b"data: [DONE]\n\n"

Handler = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[aiohttp.ClientSession]:
    application = web.Application()
    application.router.add_post(PATH, handler)
    async with TestServer(application) as server, aiohttp.ClientSession(str(server.make_url("/"))) as session:
        yield session


def streaming(*pieces: bytes, queue_ms: int = 250) -> Handler:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"x-llmux-queue-ms": str(queue_ms)})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return stream


async def heard_of(handler: Handler) -> Heard:
    heard = Heard(CALL, 100.0)
    async with served(handler) as session:
        await ask(session, heard, body_of(CALL, 1))
    return heard


def test_a_prompt_has_as_many_words_as_tokens_and_depends_on_the_seed() -> None:
    body = body_of(CALL, 1)
    assert len(str(body["prompt"]).split()) == 7
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (9, True, True)
    assert body == body_of(CALL, 1)
    assert body["prompt"] != body_of(CALL, 2)["prompt"]


async def test_an_answer_to_its_end() -> None:
    heard = await heard_of(streaming(EVENT, EVENT + DONE[:5], DONE[5:]))
    assert heard.problem == ""
    assert heard.first_token_at is not None and heard.ended_at is not None
    assert heard.first_token_at <= heard.ended_at
    fate = heard.fate(90.0)
    assert (fate.arrived_at, fate.admitted_at, fate.served) == (10.0, 10.25, True)


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        (streaming(EVENT), "without .DONE."),
        (streaming(EVENT, b'data: {"er', b'ror": {"message": "evicted"}}\n\n'), "broke off: .*evicted"),
        (streaming(), "ended without"),
    ],
)
async def test_an_answer_that_breaks_off(handler: Handler, problem: str) -> None:
    heard = await heard_of(handler)
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(heard.problem)
    assert not heard.fate(0.0).served


async def test_a_refusal() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "too many"}}, status=429)

    heard = await heard_of(refuse)
    assert heard.problem.startswith("429: ") and "too many" in heard.problem
    assert heard.ended_at is not None and heard.first_token_at is None


async def test_nobody_there() -> None:
    heard = Heard(CALL, 0.0)
    async with served(streaming()) as session:
        pass
    assert session.closed
    async with aiohttp.ClientSession("http://127.0.0.1:1") as nobody:
        await ask(nobody, heard, body_of(CALL, 1))
    assert "ClientConnectorError" in heard.problem
