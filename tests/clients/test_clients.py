"""What stock client libraries see of a real server: models, chats, streams, leaving early, switches, every error.

Each library is used by a small program of its own (``programs/``), installed apart from llmux's own environment.
"""

import asyncio
import json
from pathlib import Path

import pytest

from llmux.simulation.engine.text import embedding, expected_text
from tests.support.bench import OFFLOAD, Bench, eventually, serving, with_flags
from tests.support.client_programs import SKIP_REASON, are_missing, node_program, python_program, run

pytestmark = [pytest.mark.clients, pytest.mark.skipif(are_missing(), reason=SKIP_REASON), pytest.mark.timeout(150)]

KEY = "right"
MODELS = {name: with_flags(OFFLOAD, "--token-ms", "10") for name in ("a", "b")}
A, B = (expected_text(name, "hello", 8) for name in "ab")


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
        "models": ["a", "b"],
        "chat": A,
        "stream": A,
        "left early": "assistant",
        "in turn": [A, B, A, B],
        "response": A,
        "request id": "mine",
        "unknown model": ["NotFoundError", "model_not_found"],
        "unknown model retrieved": ["NotFoundError", "model_not_found"],
        "broken body": ["BadRequestError", "malformed_request"],
        "wrong key": ["AuthenticationError", "invalid_api_key"],
    }
    assert seen["async"] == {
        "models": ["a", "b"],
        "stream": B,
        "left early": "assistant",
        "at once": [A, B] * 4,
        "unknown model": "model_not_found",
    }


async def test_anthropic(tmp_path: Path) -> None:
    async with serving(MODELS, tmp_path, api_keys=[KEY]) as bench:
        seen = await python_program("anthropic_calls.py", bench.server.url, KEY)
    assert seen == {
        "models": ["a", "b"],
        "chat": A,
        "in turn": [A, B, A, B],
        "bearer": B,
        "unknown model": ["NotFoundError", "error", "not_found_error"],
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
        "embedding": embedding("a", "hello"),
        "unknown model": [404, "model_not_found"],
        "wrong key": [401, "invalid_api_key"],
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
        assert [model["id"] for model in json.loads(listed)["data"]] == ["a", "b"]
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
