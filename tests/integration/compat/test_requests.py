"""Which model a request goes to, and the errors when it cannot be served, as in 0.7.7."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmux.simulation.engine.text import expected_text
from tests.support.bench import OFFLOAD, SLOW, STOP, Bench, serving, with_flags
from tests.support.server import chat


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as running:
        yield running


async def test_the_header_wins_over_the_body(bench: Bench) -> None:
    answer = await bench.call("POST /v1/chat/completions", chat("a", "hello"), headers={"model-override": "b"})
    assert answer.said == expected_text("b", "hello", 8)
    assert answer.document["model"] == "b"
    assert bench.starts("a") == 0


async def test_the_header_alone_names_the_model(bench: Bench) -> None:
    body = {key: value for key, value in chat("", "hello").items() if key != "model"}
    answer = await bench.call("POST /v1/chat/completions", body, headers={"model-override": "b"})
    assert answer.said == expected_text("b", "hello", 8)


async def test_the_header_with_an_empty_body_is_forwarded_but_wakes_nothing(bench: Bench) -> None:
    """0.7.7 forwarded it to endpoints that need a body, too: the engine was started to answer 400."""
    answer = await bench.call("POST /v1/chat/completions", headers={"model-override": "a"})
    assert (answer.status, answer.code) == (400, "invalid_json")
    assert bench.starts("a") == 0
    await bench.expect("a")
    assert (await bench.call("GET /v1/anything", headers={"model-override": "a"})).status == 404


async def test_a_get_wakes_no_model(bench: Bench) -> None:
    answer = await bench.call("GET /v1/anything", headers={"model-override": "a"})
    assert (answer.status, answer.code) == (503, "model_not_loaded")
    assert bench.starts("a") == 0


async def test_an_unknown_model(bench: Bench) -> None:
    for answer in (
        await bench.ask("nobody"),
        await bench.call("POST /v1/chat/completions", chat("a", "x"), headers={"model-override": "nobody"}),
    ):
        assert (answer.status, answer.code) == (404, "model_not_found")
        error = answer.document["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "model")
        assert "nobody" in error["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{}", "missing_model"),
        (b'{"model": ""}', "missing_model"),
        (b"", "missing_model"),
        (b"no json", "invalid_json"),
        (b'{"model": 7}', None),
        (b"[]", None),
    ],
)
async def test_no_model(bench: Bench, body: bytes, code: str | None) -> None:
    answer = await bench.call("POST /v1/chat/completions", data=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert code is None or answer.code == code
    assert answer.document["error"]["type"] == "invalid_request_error"


async def test_a_wait_that_is_too_long(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}
    async with serving(models, tmp_path, policy={"request_timeout_secs": 1}) as bench:
        # An engine's start may take longer than the second; an operator's wake has no limit.
        await bench.call("POST /control/wake", {"model": "a"})
        async with bench.held_stream("a") as stream:
            answer = await bench.ask("b")
            assert (answer.status, answer.code) == (504, "queue_timeout")
            await bench.until_state("active:a")
            await bench.let_go("a")
            await stream.read()
            assert stream.is_complete
        await bench.call("POST /control/wake", {"model": "b"})
        await bench.expect("b")


async def test_the_timeout_covers_the_wait_and_not_the_response(tmp_path: Path) -> None:
    slow = with_flags(STOP, "--token-ms", "200")
    async with serving({"a": slow}, tmp_path, policy={"request_timeout_secs": 1.5}) as bench:
        await bench.call("POST /control/wake", {"model": "a"})
        await bench.expect("a", max_tokens=12)


async def test_pinned_elsewhere_and_served_after_the_unpin(bench: Bench) -> None:
    await bench.call("POST /control/pin", {"model": "b"})
    answer = await bench.ask("a")
    assert answer.status == 503
    assert answer.document["error"]["type"] == "server_error"
    assert "Retry-After" in answer.headers
    await bench.call("POST /control/unpin")
    await bench.expect("a")


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_the_list_of_models_starts_nothing(bench: Bench, path: str) -> None:
    document = (await bench.call(f"GET {path}")).document
    assert document["object"] == "list"
    assert [entry["id"] for entry in document["data"]] == ["a", "b"]
    for entry in document["data"]:
        assert (entry["object"], entry["owned_by"], entry["state"]) == ("model", "llmux", "not_started")
        assert isinstance(entry["created"], int)
    assert await bench.state() == "idle"


async def test_credentials_are_accepted_and_ignored_while_no_keys_are_set(bench: Bench) -> None:
    answer = await bench.call("POST /v1/chat/completions", chat("a", "x"), headers={"Authorization": "Bearer any"})
    assert answer.status == 200


async def test_control_paths_of_engines_are_not_forwarded(bench: Bench) -> None:
    await bench.expect("a")
    for path in ("/sleep?level=1", "/wake_up", "/collective_rpc", "/pause", "/upstream/a/sleep"):
        answer = await bench.call(f"POST {path}", {"model": "a"})
        assert answer.status == 403, path
    assert (await bench.stats("a"))["sleeps"] == 0


async def test_responses_carry_their_queue_time(bench: Bench) -> None:
    first = await bench.expect("a")
    assert int(first.headers["x-llmux-switch-ms"]) > 0
    assert int(first.headers["x-llmux-queue-ms"]) >= int(first.headers["x-llmux-switch-ms"])
    second = await bench.expect("a")
    assert "x-llmux-switch-ms" not in second.headers
    assert second.headers["x-llmux-queue-ms"] == "0"
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_responses_of_engines_pass_unchanged(bench: Bench) -> None:
    answer = await bench.call("POST /v1/completions", {"model": "a", "prompt": "hello", "max_tokens": 4})
    assert answer.document["choices"][0]["text"] == expected_text("a", "hello", 4)
    answer = await bench.call("POST /v1/embeddings", {"model": "a", "input": "hello"})
    assert len(answer.document["data"][0]["embedding"]) == 16
    answer = await bench.call("POST /v1/chat/completions", {"model": "a"})
    assert answer.status == 400
    assert "x-llmux-error" not in answer.headers
