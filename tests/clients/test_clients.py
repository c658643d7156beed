"""What stock client libraries see of a real server: models, chats, streams, leaving early, switches, every error.

Each library is used by a small program of its own (``programs/``), installed apart from llmux's own environment.
"""

import asyncio
import json
from pathlib import Path

import pytest

from llmux.simulation.engine.text import embedding, expected_text
from tests.support.bench import OFFLOAD, STOP, Bench, eventually, serving, with_flags
from tests.support.client_programs import SKIP_REASON, are_missing, node_program, python_program, run

pytestmark = [pytest.mark.clients, pytest.mark.skipif(are_missing(), reason=SKIP_REASON), pytest.mark.timeout(150)]

KEY = "right"
MODELS = {name: with_flags(OFFLOAD, "--token-ms", "10") for name in ("a", "b")}
MODELS["a"] = with_flags(MODELS["a"], "--enable-lora", "--lora-modules", "sql=/lora/sql")
NAMES = ["a", "b", "sql"]
A, B, SQL = (expected_text(name, "hello", 8) for name in ("a", "b", "sql"))


async def nothing_in_flight(bench: Bench) -> None:
    """Who left early has left nothing behind."""

    async def reached() -> bool:
        models = (await bench.status())["models"]
        return all(not models[name]["in_flight"] for name in MODELS)

    await eventually(reached, "no request in flight", 2.0)


async def test_openai(tmp_path: Path) -> None:
    async with serving(MODELS, tmp_path, api_keys=[KEY]) as bench:
        seen = await python_program("openai_calls.py", bench.server.url, KEY)
        await nothing_in_flight(bench)
    assert seen["sync"] == {
        "models": NAMES,
        "chat": A,
        "stream": A,
        "left early": "assistant",
        "in turn": [A, B, A, B],
        "response": A,
        "response stream": A,
        "response at its end": [B, "incomplete", 8],
        "response left early": "response.created",
        "adapter": [SQL, "a"],
        "adapter's response": ["sql", SQL],
        "request id": "mine",
        "unknown model": ["NotFoundError", "model_not_found"],
        "unknown model retrieved": ["NotFoundError", "model_not_found"],
        "broken body": ["BadRequestError", "malformed_request"],
        "wrong key": ["AuthenticationError", "invalid_api_key"],
    }
    assert seen["async"] == {
        "models": NAMES,
        "stream": B,
        "left early": "assistant",
        "at once": [A, B] * 4,
        "unknown model": "model_not_found",
    }


async def test_anthropic(tmp_path: Path) -> None:
    async with serving(MODELS, tmp_path, api_keys=[KEY]) as bench:
        seen = await python_program("anthropic_calls.py", bench.server.url, KEY)
        await nothing_in_flight(bench)
    assert seen == {
        "models": NAMES,
        "chat": A,
        "in turn": [A, B, A, B],
        "stream": A,
        "at its end": ["max_tokens", 8],
        "events": [
            *("message_start", "content_block_start", "content_block_delta"),
            *("content_block_stop", "message_delta", "message_stop"),
        ],
        "left early": "message_start",
        "counted": 3,
        "adapter": [SQL, 1],
        "async stream": [B, "message_start"],
        "bearer": B,
        "unknown model": ["NotFoundError", "error", "not_found_error"],
        "unknown model counted": ["NotFoundError", "error", "not_found_error"],
        "wrong key": ["AuthenticationError", "error", "authentication_error"],
    }


async def test_litellm(tmp_path: Path) -> None:
    async with serving(MODELS, tmp_path, api_keys=[KEY]) as bench:
        seen = await python_program("litellm_calls.py", bench.server.url, KEY)
        await nothing_in_flight(bench)
    assert seen == {
        "openai": A,
        "hosted_vllm": A,
        "anthropic": A,
        "stream": A,
        "async stream": B,
        "anthropic stream": B,
        "adapter": [SQL, SQL],
        "models of openai": NAMES,
        "models of anthropic": [f"anthropic/{name}" for name in NAMES],
        "response": expected_text("b", "hello", 16),
        "left early": "chat.completion.chunk",
        "in turn": [A, B, A, B],
        "text": expected_text("b", "hello", 4),
        "unknown model": "NotFoundError",
        "wrong key": "AuthenticationError",
    }


async def test_langchain(tmp_path: Path) -> None:
    async with serving(MODELS, tmp_path, api_keys=[KEY]) as bench:
        seen = await python_program("langchain_calls.py", bench.server.url, KEY)
        await nothing_in_flight(bench)
    assert seen == {
        "chat": A,
        "stream": A,
        "left early": "AIMessageChunk",
        "in turn": [A, B, A, B],
        "batch": [B] * 3,
        "at once": [A, B, A, B],
        "response": A,
        "response stream": B,
        "models": NAMES,
        "adapter": SQL,
        "embedding": embedding("a", "hello"),
        "unknown model": "NotFoundError",
        "wrong key": "AuthenticationError",
    }


async def test_vercel_ai_sdk(tmp_path: Path) -> None:
    async with serving(MODELS, tmp_path, api_keys=[KEY]) as bench:
        seen = await node_program("ai_sdk_calls.mjs", bench.server.url, KEY)
        await nothing_in_flight(bench)
    assert seen == {
        "chat": A,
        "stream": A,
        "left early": True,
        "in turn": [A, B, A, B],
        "at once": [A, B] * 4,
        "adapter": [SQL, SQL],
        "embedding": embedding("a", "hello"),
        "unknown model": [404, "model_not_found"],
        "wrong key": [401, "invalid_api_key"],
    }


WAITING = {"wait_comments_after_seconds": 0.2, "keepalive_seconds": 0.2}
"""Comments come several times while an engine starts, which takes a third of a second and what a test adds."""


@pytest.mark.parametrize("library", ["openai", "anthropic"])
async def test_streams_that_wait_for_a_cold_model(library: str, tmp_path: Path) -> None:
    """Comments are no events to these libraries, and an error in a stream raises."""
    slow = with_flags(STOP, "--startup-delay-ms", "1500")
    models = {
        "a": slow,
        "b": slow,
        "c": with_flags(OFFLOAD, "--startup-delay-ms", "1500", "--max-model-len", "8"),
        "never": with_flags(STOP, "--sim-fault", "start-hang"),
    }
    async with serving(models, tmp_path, start_timeout_seconds=6.0, **WAITING) as bench:
        seen = await python_program("waiting_calls.py", bench.server.url, library)
    assert seen == WAITED[library]


WAITED = {
    "openai": {
        "chat": [A, True],
        "response": [B, True],
        "never": ["APIError", "model_unavailable"],
        "refused": ["APIError", "400"],
    },
    "anthropic": {
        "message": [A, True],
        "events": [B, True],
        "never": ["APIStatusError", "overloaded_error"],
        "refused": ["APIStatusError", "BadRequestError"],
    },
}


async def curl(bench: Bench, path: str, *options: str, key: str = KEY) -> tuple[int, str]:
    """curl's exit code and output."""
    fixed = ["--silent", "--show-error", "--max-time", "30", "-H", f"Authorization: Bearer {key}"]
    return await run("curl", *fixed, *options, bench.server.url + path)


async def test_curl(tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    ways = {
        "as usual": (),
        "HTTP/1.0": ("--http1.0",),
        "an offer of h2c": ("--http2",),
        "chunked": ("-H", "Transfer-Encoding: chunked"),
        "waiting for 100": ("-H", "Expect: 100-continue"),
        "compressed": ("--compressed",),
    }
    async with serving(MODELS, tmp_path, api_keys=[KEY]) as bench:
        code, listed = await curl(bench, "/v1/models")
        assert code == 0
        assert [model["id"] for model in json.loads(listed)["data"]] == NAMES
        kind = ("-H", "Content-Type: application/json")
        for model, text in (("a", A), ("b", B)):
            document = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
            body.write_text(json.dumps(document))
            for name, options in ways.items():
                code, answer = await curl(bench, "/v1/chat/completions", *kind, *options, "--data-binary", f"@{body}")
                assert code == 0, name
                assert json.loads(answer)["choices"][0]["message"]["content"] == text, name
        body.write_text(json.dumps(document | {"stream": True, "max_tokens": 500}))
        code, answer = await curl(
            bench, "/v1/chat/completions", *kind, "--no-buffer", "--max-time", "0.5", "--data-binary", f"@{body}"
        )
        assert (code, answer.startswith("data: ")) == (28, True), "left before the end"
        await nothing_in_flight(bench)
        code, answer = await curl(bench, "/v1/chat/completions", *kind, "--data", '{"model":"nobody"}')
        assert json.loads(answer)["error"]["code"] == "model_not_found"
        status = ("--output", "/dev/null", "--write-out", "%{http_code}")
        assert await curl(bench, "/v1/models", *status, key="wrong") == (0, "401")
        await said_at_once(bench)


async def said_at_once(bench: Bench) -> None:
    """Who speaks TLS on the plain port is refused, not left waiting: curl gives up after three seconds."""
    url = bench.server.url.replace("http:", "https:")
    code, _ = await run("curl", "--silent", "--insecure", "--max-time", "3", url + "/v1/models")
    assert code not in (0, 28)


async def test_an_upload_that_is_refused_can_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * 5_000_000)
    async with serving(MODELS, tmp_path, api_keys=[KEY]) as bench:
        upload = ("--limit-rate", "2M", "-T", str(large), "-X", "POST", "--write-out", "%{http_code}")
        answers = await asyncio.gather(
            curl(bench, "/v1/nowhere/at/all", *upload, key="wrong"), curl(bench, "/nowhere", *upload)
        )
    assert [answer[-3:] for _, answer in answers] == ["401", "404"]
