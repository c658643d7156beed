"""Engines that answer with their own address, and clients that follow it: they must not get past llmux."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llmux.access import Outcome
from tests.support.bench import DEADLINE_SECONDS, OFFLOAD, SLOW, serving, with_flags
from tests.support.gateway import EngineSide, Message, get, post, running_gateway
from tests.support.server import chat

BODY = b'{"model":"m"}'


async def redirecting(request: Message, engine: EngineSide) -> None:
    """As FastAPI's router: a path that has moved is redirected to the host that was asked for."""
    method, target, _ = request.start.decode().split(" ")
    host = (request.get("host") or b"").decode()
    if target.endswith("/old"):
        moved = target.removesuffix("/old")
        engine.answer(b"", status="307 Temporary Redirect", fields=f"location: http://{host}{moved}\r\n".encode())
    else:
        engine.answer(f"{method} {target} {request.body.decode()}".encode())


@pytest.mark.parametrize("prefix", ["", "/upstream/m"])
async def test_a_client_that_follows_a_redirect_stays_with_llmux(prefix: str) -> None:
    async with running_gateway(redirecting) as bench, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{bench.port}{prefix}/v1/special/thing"
        async with session.post(f"{url}/old", data=BODY, headers={"Content-Type": "application/json"}) as answer:
            assert (answer.status, str(answer.url)) == (200, url)
            assert await answer.text() == 'POST /v1/special/thing {"model":"m"}'
        assert bench.access.ended == [(1, Outcome.COMPLETED), (2, Outcome.COMPLETED)]


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "301 Moved", "308 Permanent Redirect"])
@pytest.mark.parametrize("name", ["Location", "Content-Location", "Link", "Refresh"])
async def test_no_header_tells_the_engines_address(status: str, name: str) -> None:
    values = {"Link": "<%s>; rel=next", "Refresh": "0; url=%s"}

    async def script(request: Message, engine: EngineSide) -> None:
        for_all = values.get(name, "%s") % f"http://localhost:{bench.engine.port}/v1/x?a=b"
        engine.answer(b"{}", status=status, fields=f"{name}: {for_all}\r\n".encode())

    async with running_gateway(script) as bench:
        client = await bench.client()
        # Again on the same connection: a head that repeats itself is not parsed again.
        for _ in range(3):
            client.send(post(BODY, path="/upstream/m/v1/completions"))
            answer = await client.answer()
            assert (answer.start.decode(), answer.body) == (f"HTTP/1.1 {status}", b"{}")
            assert answer.get(name.lower()) == (values.get(name, "%s") % "/upstream/m/v1/x?a=b").encode()
        assert len(bench.engine.connections) == 1


async def test_an_address_that_no_path_stands_for_is_refused() -> None:
    async def script(request: Message, engine: EngineSide) -> None:
        engine.answer(b"secret", status="302 Found", fields=b"location: http://127.0.0.1:9/x\r\n")

    async with running_gateway(script) as bench:
        for request in (post(BODY), get("/v1/responses/1", "model-override: m")):
            answer = await bench.ask(request)
            error: Any = json.loads(answer.body)["error"]
            assert (answer.status, error["code"]) == (502, "bad_gateway")
            assert "location" in error["message"] and "127.0.0.1" not in error["message"]
        assert bench.access.ended == [(1, Outcome.BROKEN), (2, Outcome.BROKEN)]
        assert bench.access.given_back == [], "an engine that lives was asked twice"


async def test_a_slash_too_many_reaches_vllms_answer_with_its_lease_counted(tmp_path: Path) -> None:
    async with serving({"m": with_flags(OFFLOAD, *SLOW)}, tmp_path) as bench:
        url = f"{bench.server.url}/upstream/m/v1/chat/completions/"
        body = chat("m", "hello", stream=True, max_tokens=200)
        async with asyncio.timeout(DEADLINE_SECONDS), bench.session.post(url, json=body) as answer:
            assert (answer.status, f"{answer.url.origin()}") == (200, bench.server.url)
            while not (await answer.content.readline()).startswith(b"data: "):
                pass  # a comment, while the engine starts
            assert (await bench.status())["models"]["m"]["in_flight"] == 1
