"""A page in a real Chromium: what it may do where its origin is allowed, and what it must not where it is not."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from llmux.simulation.engine.text import expected_text
from tests.support.bench import OFFLOAD, serving, with_flags
from tests.support.client_programs import CHROMIUM_VARIABLE, SKIP_REASON, are_missing, node_program

pytestmark = [pytest.mark.clients, pytest.mark.skipif(are_missing(), reason=SKIP_REASON), pytest.mark.timeout(150)]

KEY = "right"
MODELS = {name: with_flags(OFFLOAD, "--token-ms", "10") for name in ("a", "b")}
A, B = (expected_text(name, "hello", 8) for name in "ab")


@asynccontextmanager
async def page() -> AsyncIterator[str]:
    """A page's origin: another port, and so another origin, than llmux's."""

    async def document(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>a page</title>", content_type="text/html")

    application = web.Application()
    application.router.add_get("/", document)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0)
    await site.start()
    try:
        yield f"http://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def calls_from(origin: str, url: str, key: str = "") -> Any:
    """What the page of this origin was answered."""
    return await node_program("browser_calls.mjs", os.environ[CHROMIUM_VARIABLE], f"{origin}/", url, key)


@pytest.mark.parametrize("key", [KEY, ""], ids=["with a key", "without keys"])
async def test_a_page_of_an_allowed_origin(tmp_path: Path, key: str) -> None:
    keys = {"api_keys": [key]} if key else {}
    async with page() as origin, serving(MODELS, tmp_path, cors_origins=[origin], **keys) as bench:
        seen = await calls_from(origin, bench.server.url, key)
    assert seen == {
        "models": ["a", "b"],
        "chat": A,
        "stream": A,
        "left early": True,
        "in turn": [A, B, A, B],
        "unknown model": [404, "model_not_found"],
        "wrong key": [401, "invalid_api_key"] if key else [200, None],
        "without a preflight": "opaque",
    }


@pytest.mark.parametrize("allowed", [[], ["http://elsewhere.example"]], ids=["none allowed", "another allowed"])
async def test_a_page_of_another_origin_can_do_nothing(tmp_path: Path, allowed: list[str]) -> None:
    async with page() as origin, serving(MODELS, tmp_path, cors_origins=allowed) as bench:
        seen = await calls_from(origin, bench.server.url)
        assert seen.pop("without a preflight") in ("opaque", "TypeError")
        assert all(outcome == "TypeError" for outcome in seen.values()), seen
        assert bench.starts("a") == bench.starts("b") == 0, "a page woke a model"
