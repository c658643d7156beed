"""The simulated engine's front, compared with what vLLM 0.32's does: redirects, methods, keys, origins, sockets."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.simulated_engine import EngineProcess, engine, eventually, launched

PREFLIGHT = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def open_engine(anyio_backend: str) -> AsyncIterator[EngineProcess]:
    """Behind a prefix, and readable by the pages of one origin."""
    async with engine("--root-path", "/llm", "--allowed-origins", '["http://page"]') as model:
        yield model


@pytest.fixture(scope="module")
async def closed_engine(anyio_backend: str) -> AsyncIterator[EngineProcess]:
    """With keys, and with no origin allowed, which is the default."""
    async with engine("--api-key", "secret") as model:
        yield model


@pytest.mark.parametrize(
    ("host", "path", "location"),
    [
        ("127.0.0.1:1", f"{CHAT}/", f"http://127.0.0.1:1{CHAT}"),
        ("example.com", f"{CHAT}/?a=b%20c", f"http://example.com{CHAT}?a=b%20c"),
        ("x", f"/llm{CHAT}/", f"http://x/llm{CHAT}"),
        ("x", "/v1/models/", "http://x/v1/models"),
    ],
)
async def test_a_slash_too_many_is_redirected_to_the_host_that_was_asked_for(
    open_engine: EngineProcess, host: str, path: str, location: str
) -> None:
    request = open_engine.session.post(open_engine.url(path), json={}, headers={"Host": host}, allow_redirects=False)
    async with request as response:
        assert (response.status, response.headers["location"], await response.read()) == (307, location, b"")


async def test_a_redirect_is_followed_to_the_answer(open_engine: EngineProcess) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert (await open_engine.post(f"{CHAT}/", body))[0] == 200
    assert (await open_engine.post(f"/llm{CHAT}", body))[0] == 200


@pytest.mark.parametrize(
    ("call", "allowed"),
    [(f"GET {CHAT}", "POST"), (f"PUT {CHAT}", "POST"), ("HEAD /health", "GET"), ("DELETE /ping", "GET, POST")],
)
async def test_a_wrong_method_is_told_the_right_ones(open_engine: EngineProcess, call: str, allowed: str) -> None:
    method, path = call.split()
    async with open_engine.session.request(method, open_engine.url(path)) as response:
        assert (response.status, response.headers["allow"], response.headers["server"]) == (405, allowed, "uvicorn")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_only_json_is_read(open_engine: EngineProcess, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    async with open_engine.session.post(open_engine.url(CHAT), data=b'{"messages":[]}', headers=headers) as response:
        assert response.status == 400
        assert "Unsupported Media Type" in await response.text()


async def test_pages_of_allowed_origins_may_read_the_answers(open_engine: EngineProcess) -> None:
    for origin, may in (("http://page", "http://page"), ("http://other", None)):
        headers = {**PREFLIGHT, "Origin": origin, "Access-Control-Request-Headers": "content-type"}
        async with open_engine.session.options(open_engine.url(CHAT), headers=headers) as response:
            assert (response.status, response.headers.get("access-control-allow-origin")) == (200 if may else 400, may)
        async with open_engine.session.get(open_engine.url("/health"), headers={"Origin": origin}) as response:
            assert (response.status, response.headers.get("access-control-allow-origin")) == (200, may)
            assert response.headers["vary"] == "Origin"


async def test_no_origin_is_allowed_by_default(closed_engine: EngineProcess) -> None:
    async with closed_engine.session.options(closed_engine.url(CHAT), headers=PREFLIGHT) as response:
        assert (response.status, await response.text()) == (400, "Disallowed CORS origin")


async def test_keys_guard_trees_of_paths_whether_or_not_they_exist(closed_engine: EngineProcess) -> None:
    for path in (CHAT, "/v1/nothing", "/v2/nothing", "/inference/nothing"):
        assert await closed_engine.post(path, {}) == (401, {"error": "Unauthorized"})
    assert await closed_engine.post("/nothing", {}) == (404, {"detail": "Not Found"})


async def test_it_listens_on_a_unix_socket_and_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with launched("serve", "m", "--uds", str(path), "--latency-ms", "0") as model:

        async def is_ready() -> bool:
            return model.stdout() == f"READY {path}\n"

        await eventually(is_ready, "READY on stdout")
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.get("http://localhost/health") as response,
        ):
            assert response.status == 200
    assert path.is_socket()
    async with launched("serve", "m", "--uds", str(path)) as model:
        assert await model.exit_code() == 1
        assert "Address already in use" in model.stderr()
