"""The simulated engine as real processes: what it answers, and that it has vLLM's vices."""

import asyncio
import base64
import json
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llmux.simulation.engine.text import embedding, expected_text
from llmux.simulation.ledger import Ledger
from tests.support.simulated_engine import DEADLINE_SECONDS, EngineProcess, engine, eventually, launched, ready_port

SLOW = ("--token-ms", "20")


async def events(model: EngineProcess, prompt: str = "hello", **fields: Any) -> AsyncGenerator[Any, None]:
    """The events of a streamed chat, decoded; the last one is the string [DONE]."""
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, **fields}
    async with model.session.post(model.url("/v1/chat/completions"), json=body) as response:
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: "):
                data = line.removeprefix(b"data: ").strip()
                yield data.decode() if data == b"[DONE]" else json.loads(data)


def content(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks if chunk != "[DONE]")


async def collected(model: EngineProcess, prompt: str = "hello", **fields: Any) -> list[Any]:
    return [event async for event in events(model, prompt, **fields)]


async def sleep(model: EngineProcess, query: str = "level=2") -> None:
    status, body = await model.post(f"/sleep?{query}")
    assert status == 200, body


async def test_it_answers_as_vllm_does() -> None:
    async with engine("--served-model-name", "alias", "org/m", "--max-model-len", "64", "--dtype", "auto") as model:
        assert (await model.get("/health"))[0] == 200
        assert "version" in (await model.get("/version"))[1]
        _, listed = await model.get("/v1/models")
        assert [entry["id"] for entry in listed["data"]] == ["alias", "org/m"]
        for name in ("alias", "org/m"):
            status, body = await model.ask("two words", model=name, max_tokens=5)
            assert (status, body["model"]) == (200, "alias")
            assert body["choices"][0]["message"]["content"] == expected_text("alias", "two words", 5)
            assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
            assert body["choices"][0]["finish_reason"] == "length"
        _, body = await model.post("/v1/completions", {"prompt": "x", "max_tokens": 3})
        assert body["choices"][0]["text"] == expected_text("alias", "x", 3)
        body = {"messages": [{"role": "user", "content": "x"}]}
        _, body = await model.post("/v1/chat/completions", body, headers={"X-Request-Id": "mine"})
        assert body["id"] == "chatcmpl-mine"
        assert body["choices"][0]["finish_reason"] == "stop"
        assert await model.answer(temperature=0.0, seed=1) == "4"
        assert (await model.stats())["request_count"] == 5


async def test_the_other_dialects() -> None:
    async with engine() as model:
        _, body = await model.post("/v1/embeddings", {"input": ["a", "b"]})
        assert [entry["embedding"] for entry in body["data"]] == [embedding("model", "a"), embedding("model", "b")]
        _, body = await model.post("/v1/embeddings", {"input": "a", "encoding_format": "base64"})
        assert list(struct.unpack("<16f", base64.b64decode(body["data"][0]["embedding"]))) == embedding("model", "a")
        _, body = await model.post("/v1/responses", {"input": "x", "max_output_tokens": 3})
        assert body["output"][0]["content"][0]["text"] == expected_text("model", "x", 3)
        message = {"role": "user", "content": "x"}
        _, body = await model.post("/v1/messages", {"model": "model", "messages": [message], "max_tokens": 3})
        assert body["content"][0]["text"] == expected_text("model", "x", 3)
        assert (await model.post("/tokenize", {"prompt": "a b c"}))[1]["count"] == 3


async def named_events(server: EngineProcess, path: str, **body: Any) -> list[tuple[str, Any]]:
    """The events of a stream with their names; each has to say its name in its document too."""
    async with server.session.post(server.url(path), json={"stream": True, **body}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        lines = [event.split("\n") for event in (await response.text()).split("\n\n") if event]
    pairs = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]
    assert [name for name, _ in pairs] == [document["type"] for _, document in pairs]
    return pairs


async def test_a_streamed_response(shared: EngineProcess) -> None:
    body = {"input": "x", "instructions": "be brief", "max_output_tokens": 3}
    got = await named_events(shared, "/v1/responses", **body)
    assert [name.removeprefix("response.") for name, _ in got] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * 3,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    documents = [document for _, document in got]
    assert [document["sequence_number"] for document in documents] == list(range(11))
    text = expected_text("model", "be brief\nx", 3)
    assert "".join(document["delta"] for document in documents[4:7]) == text
    assert (documents[7]["text"], documents[8]["part"]["text"]) == (text, text)
    created, completed = documents[0]["response"], documents[-1]["response"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    assert (completed["status"], completed["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert completed["output"] == [documents[9]["item"]]
    assert [completed["usage"][key] for key in ("input_tokens", "output_tokens", "total_tokens")] == [3, 3, 6]
    _, whole = await shared.post("/v1/responses", body)
    assert whole["output"][0]["content"] == completed["output"][0]["content"]
    assert whole["usage"] == completed["usage"]
    _, unlimited = await shared.post("/v1/responses", {"input": "x"})
    assert (unlimited["status"], unlimited["incomplete_details"]) == ("completed", None)


async def test_a_streamed_message(shared: EngineProcess) -> None:
    body = {"model": "model", "messages": [{"role": "user", "content": "x"}], "system": "be brief", "max_tokens": 3}
    got = await named_events(shared, "/v1/messages", **body)
    assert [name for name, _ in got] == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * 3,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    start, block, *deltas, _, delta, _ = [document for _, document in got]
    assert start["message"]["usage"] == {"input_tokens": 3, "output_tokens": 0}
    assert block["content_block"] == {"type": "text", "text": ""}
    text = expected_text("model", "be brief\nx", 3)
    assert "".join(document["delta"]["text"] for document in deltas) == text
    assert delta["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert delta["usage"] == {"input_tokens": 3, "output_tokens": 3}
    _, whole = await shared.post("/v1/messages", body)
    assert (whole["content"], whole["usage"]) == ([{"type": "text", "text": text}], delta["usage"])
    _, counted = await shared.post("/v1/messages/count_tokens", body)
    assert counted == {"input_tokens": 3, "context_management": {"original_input_tokens": 3}}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_anthropics_errors(path: str, shared: EngineProcess) -> None:
    """Those of the body's form come before the endpoint, and are OpenAI's."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    status, answer = await shared.post(path, body | {"model": "nope"})
    message = "The model `nope` does not exist. Valid aliases: model."
    assert (status, answer) == (404, {"type": "error", "error": {"type": "NotFoundError", "message": message}})
    status, answer = await shared.post(path, body)
    assert (status, answer["error"]["param"]) == (400, "body.model")


async def test_adapters() -> None:
    json_adapter = json.dumps({"name": "chat", "path": "/lora/chat", "base_model_name": "other"})
    flags = ("--served-model-name", "base", "other", "--enable-lora", "--lora-modules", "sql=/lora/sql", json_adapter)
    async with engine(*flags, model="org/m") as model:
        _, listed = await model.get("/v1/models")
        keys = ("id", "root", "parent", "max_model_len")
        assert [tuple(entry[key] for key in keys) for entry in listed["data"]] == [
            ("base", "org/m", None, 131072),
            ("other", "org/m", None, 131072),
            ("sql", "/lora/sql", "base", None),
            ("chat", "/lora/chat", "other", None),
        ]
        for asked, answering in (("sql", "sql"), ("chat", "chat"), ("other", "base"), (None, "base")):
            status, body = await model.ask(model=asked, max_tokens=3)
            assert (status, body["model"]) == (200, answering)
            assert body["choices"][0]["message"]["content"] == expected_text(answering, "hello", 3)
            _, body = await model.post("/v1/responses", {"model": asked, "input": "x", "max_output_tokens": 3})
            assert (body["model"], body["output"][0]["content"][0]["text"]) == (
                answering,
                expected_text(answering, "x", 3),
            )
        status, body = await model.ask(model="org/m")
        assert (status, body["error"]["message"]) == (
            404,
            "The model `org/m` does not exist. Valid aliases: base, other.",
        )


async def test_the_head_of_a_stream_does_not_wait_for_a_token() -> None:
    """Nor do the first two events of a response; a message's first one does."""
    message = {"model": "model", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    async with engine() as model, asyncio.TaskGroup() as tasks:
        await model.post("/pause?mode=keep")
        post = model.session.post
        async with (
            post(model.url("/v1/responses"), json={"input": "x", "stream": True}) as response,
            post(model.url("/v1/messages"), json={**message, "stream": True}) as answer,
        ):
            assert [await response.content.readline() for _ in range(4)][3] == b"event: response.in_progress\n"
            reading = tasks.create_task(answer.content.readline())
            assert (await model.stats())["waiting"] == 2
            assert not reading.done()
            await model.post("/resume")
            assert await reading == b"event: message_start\n"


async def test_a_stream_is_cut_into_tokens() -> None:
    async with engine() as model:
        chunks = await collected(model, "x", max_tokens=3, stream_options={"include_usage": True})
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        *body, usage, done = chunks
        assert content(body) == expected_text("model", "x", 3)
        assert [chunk["choices"][0]["finish_reason"] for chunk in body] == [None, None, None, None, "length"]
        assert (usage["choices"], usage["usage"]["completion_tokens"], done) == ([], 3, "[DONE]")


@pytest.mark.parametrize(
    ("path", "body", "status", "type_"),
    [
        ("/v1/chat/completions", {"model": "nope", "messages": []}, 404, "NotFoundError"),
        ("/v1/chat/completions", {}, 400, "Bad Request"),
        ("/v1/chat/completions", {"messages": "x"}, 400, "Bad Request"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, "BadRequestError"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 10**7}, 400, "BadRequestError"),
        ("/v1/completions", [], 400, "Bad Request"),
        ("/sleep?level=7", None, 400, "BadRequestError"),
        ("/sleep?mode=nap", None, 400, "BadRequestError"),
        ("/collective_rpc", {}, 400, "BadRequestError"),
        ("/control/latency", {}, 400, "BadRequestError"),
    ],
)
async def test_bad_requests(path: str, body: Any, status: int, type_: str, shared: EngineProcess) -> None:
    got, answer = await shared.post(path, body)
    assert (got, answer["error"]["type"], answer["error"]["code"]) == (status, type_, status)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def shared(anyio_backend: str) -> AsyncIterator[EngineProcess]:
    async with engine() as model:
        yield model


async def test_unknown_paths_and_methods(shared: EngineProcess) -> None:
    assert await shared.get("/nope") == (404, {"detail": "Not Found"})
    assert await shared.get("/v1/completions") == (405, {"detail": "Method Not Allowed"})


async def test_lifecycle_needs_development_mode_and_keys_guard_only_v1() -> None:
    async with engine("--api-key", "secret", environment={"VLLM_SERVER_DEV_MODE": "0"}) as model:
        for path in ("/sleep", "/wake_up", "/collective_rpc", "/pause"):
            assert await model.post(path) == (404, {"detail": "Not Found"})
        assert await model.ask() == (401, {"error": "Unauthorized"})
        headers = {"Authorization": "Bearer secret"}
        assert (await model.post("/v1/completions", {"prompt": "x"}, headers=headers))[0] == 200
        assert (await model.get("/stats"))[0] == 200


async def test_the_style_of_the_mock() -> None:
    async with launched("--port", "0", "--model", "m", "--startup-delay-ms", "1") as model:
        model.port = await ready_port(model)
        assert (await model.stats())["model"] == "m"


async def test_requests_to_a_sleeping_engine_hang_until_it_wakes_and_are_counted() -> None:
    async with engine() as model, asyncio.TaskGroup() as tasks:
        await sleep(model, "level=1")
        assert (await model.get("/health"))[0] == 200
        request = tasks.create_task(model.answer())

        async def counted() -> bool:
            return bool((await model.stats())["requests_while_asleep"])

        await eventually(counted, "the request arrived")
        assert not request.done()
        assert await model.post("/wake_up?tags=weights") == (200, {"status": "sleeping", "tags": ["weights"]})
        assert (await model.get("/is_sleeping"))[1] == {"is_sleeping": True}
        assert not request.done()
        assert await model.post("/wake_up?tags=kv_cache") == (200, {"status": "awake", "tags": ["kv_cache"]})
        assert await request == expected_text("model", "hello")


async def test_level_2_without_reload_answers_garbage_with_200() -> None:
    async with engine("--sim-reload-ms", "0") as model:
        await sleep(model)
        await model.post("/wake_up")
        assert await model.answer(max_tokens=3) == "!!!"
        assert await model.answer(temperature=0, seed=1) == "!"
        assert (await model.post("/collective_rpc", {"method": "reload_weights"}))[0] == 200
        assert await model.answer(max_tokens=3) == expected_text("model", "hello", 3)
        assert (await model.stats())["garbage_tokens"] == 4


async def test_a_second_sleep_changes_nothing_and_the_level_is_read_from_the_query_only() -> None:
    async with engine() as model:
        await model.post("/sleep", {"level": 2})
        assert (await model.stats())["sleep_level"] == 1
        assert await model.post("/sleep?level=2") == (200, {"status": "sleeping", "level": 2})
        assert (await model.stats())["sleep_level"] == 1
        await model.post("/wake_up")
        assert await model.answer() == expected_text("model", "hello")


async def test_without_sleep_mode_sleeping_answers_200_and_frees_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    flags = ("--no-enable-sleep-mode", "--sim-gpu-ledger", str(ledger.path), "--sim-gpu-memory", "600")
    async with engine(*flags) as model:
        await sleep(model)
        assert ledger.snapshot().used_mib == 600


async def test_its_kv_cache_is_released_alone_in_a_pause_and_comes_back_by_its_tag(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    flags = ("--sim-gpu-ledger", str(ledger.path), "--sim-gpu-memory", "600", "--sim-residue", "100")
    async with engine(*flags) as model:
        assert (await model.get("/release_kv_cache_memory"))[0] == 405
        assert (await model.post("/release_kv_cache_memory"))[0] == 500, "it wants a pause"
        await model.post("/pause")
        assert await model.post("/release_kv_cache_memory") == (200, {"status": "kv_cache_released"})
        assert ledger.snapshot().used_mib == 350
        assert (await model.post("/release_kv_cache_memory"))[0] == 500, "it wants everything awake"
        assert (await model.get("/is_sleeping"))[1] == {"is_sleeping": True}
        assert (await model.post("/wake_up?tags=kv_cache"))[1]["status"] == "awake"
        assert ledger.snapshot().used_mib == 600
        assert await model.answer() == expected_text("model", "hello")
    async with engine("--sim-fault", "old-sleep") as model:
        assert (await model.get("/release_kv_cache_memory"))[0] == 404


async def test_sleeping_by_abort_truncates_what_is_in_flight_and_is_counted() -> None:
    async with engine(*SLOW) as model, asyncio.TaskGroup() as tasks:
        whole = tasks.create_task(model.ask(max_tokens=1000))
        async with aclosing(events(model, max_tokens=1000)) as stream:
            chunks = [await anext(stream) for _ in range(4)]
            await sleep(model, "level=1")
            chunks += [event async for event in stream]
        assert chunks[-1] == "[DONE]"
        assert chunks[-2]["choices"][0]["finish_reason"] == "abort"
        assert expected_text("model", "hello", 1000).startswith(content(chunks[:-1]))
        status, body = await whole
        assert (status, body["choices"][0]["finish_reason"]) == (200, "abort")
        assert (await model.stats())["slept_under_requests"] == 1


async def test_sleeping_by_wait_lets_them_end() -> None:
    async with engine(*SLOW) as model, asyncio.TaskGroup() as tasks:
        request = tasks.create_task(model.answer(max_tokens=10))
        await model.running(1)
        await sleep(model, "level=1&mode=wait")
        assert await request == expected_text("model", "hello", 10)


async def test_sleeping_by_keep_freezes_them_and_they_go_on_with_the_same_text() -> None:
    async with engine(*SLOW) as model:
        async with aclosing(events(model, max_tokens=20)) as stream:
            chunks = [await anext(stream) for _ in range(5)]
            await sleep(model, "level=1&mode=keep")
            before = (await model.stats())["tokens"]
            await asyncio.sleep(0.1)
            assert (await model.stats())["tokens"] == before < 20
            await model.post("/wake_up")
            chunks += [event async for event in stream]
        assert content(chunks) == expected_text("model", "hello", 20)
        assert (await model.stats())["slept_under_requests"] == 0


async def test_a_pause_freezes_too() -> None:
    async with engine() as model, asyncio.TaskGroup() as tasks:
        assert await model.post("/pause?mode=keep") == (200, {"status": "paused"})
        request = tasks.create_task(model.answer())

        async def queued() -> bool:
            return bool((await model.stats())["waiting"])

        await eventually(queued, "the request waits")
        assert (await model.get("/is_paused"))[1] == {"is_paused": True}
        await model.post("/resume")
        assert await request == expected_text("model", "hello")


async def test_waking_during_a_drain_leaves_an_engine_that_dies_at_its_next_request() -> None:
    async with engine(*SLOW) as model:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(model.ask(max_tokens=15))
            await model.running(1)
            sleeping = tasks.create_task(model.post("/sleep?level=1&mode=wait"))

            async def draining() -> bool:
                return bool((await model.get("/is_paused"))[1]["is_paused"])

            await eventually(draining, "the sleep has begun")
            assert (await model.post("/wake_up"))[1]["status"] == "awake"
            assert (await sleeping)[0] == 200
        assert (await model.get("/is_paused"))[1] == {"is_paused": False}
        assert (await model.get("/is_sleeping"))[1] == {"is_sleeping": True}
        await assert_dead(model, await model.ask())


async def test_a_sleep_goes_on_when_its_client_leaves() -> None:
    async with engine(*SLOW) as model, asyncio.TaskGroup() as tasks:
        request = tasks.create_task(model.answer(max_tokens=15))
        await model.running(1)
        with pytest.raises(TimeoutError):
            await model.post("/sleep?mode=wait", timeout=aiohttp.ClientTimeout(total=0.05))
        await request

        async def asleep() -> bool:
            return bool((await model.stats())["sleep_level"])

        await eventually(asleep, "it sleeps")


async def test_reloading_while_asleep_kills_it() -> None:
    async with engine() as model:
        await sleep(model)
        await assert_dead(model, await model.post("/collective_rpc", {"method": "reload_weights"}))


async def assert_dead(model: EngineProcess, answer: tuple[int, Any]) -> None:
    """As vLLM's death looks: a 500 body, then /health 503, then exit code 0."""
    assert answer[0] == 500
    assert answer[1]["error"]["message"].startswith("EngineCore encountered an issue")
    assert (await model.get("/health"))[0] == 503
    assert await model.exit_code() == 0


async def test_a_leaving_client_ends_its_request_streamed_or_not() -> None:
    async with engine(*SLOW) as model:
        async with aclosing(events(model, max_tokens=10_000)) as stream:
            await anext(stream)
        with pytest.raises(TimeoutError):
            await model.post(
                "/v1/completions", {"prompt": "x", "max_tokens": 9999}, timeout=aiohttp.ClientTimeout(total=0.1)
            )
        await model.running(0)


async def test_no_more_run_at_once_than_max_num_seqs() -> None:
    async with engine("--max-num-seqs", "2", "--latency-ms", "20") as model, asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(model.answer(f"prompt {number}")) for number in range(6)]
        for number, answer in enumerate(answers):
            assert await answer == expected_text("model", f"prompt {number}")
        assert (await model.stats())["peak_running"] == 2


async def test_latency_is_as_asked() -> None:
    async with engine("--latency-ms", "50", "--token-ms", "10") as model:
        began = time.monotonic()
        await model.answer(max_tokens=6)
        assert time.monotonic() - began >= 0.1
        await model.post("/control/latency", {"latency_ms": 0, "token_ms": 0})
        began = time.monotonic()
        await model.answer(max_tokens=1000)
        assert time.monotonic() - began < 0.1 * DEADLINE_SECONDS


READING = ("--sim-prefill-tokens-per-second", "1000")


async def test_prompts_are_read_one_after_the_other() -> None:
    async with engine(*READING) as model, asyncio.TaskGroup() as tasks:
        began = time.monotonic()
        prompt = " ".join(["word"] * 200)
        answers = [tasks.create_task(model.answer(prompt, max_tokens=1)) for _ in range(3)]
        await asyncio.wait(answers)
        assert time.monotonic() - began >= 0.6


async def test_what_was_frozen_is_read_again_before_it_goes_on() -> None:
    async with engine(*SLOW, *READING) as model:
        async with aclosing(events(model, " ".join(["word"] * 300), max_tokens=20)) as stream:
            await anext(stream)
            await sleep(model, "level=1&mode=keep")
            before = (await model.stats())["tokens"]
            # Before the call: it begins to read before the answer is here.
            woken = time.monotonic()
            await model.post("/wake_up")
            async for _ in stream:
                if (await model.stats())["tokens"] > before:
                    break
            assert time.monotonic() - woken >= 0.3
