"""What the stock openai client sees: every kind of call, and every error as the exception that it stands for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from llmux.simulation.engine.text import embedding, expected_text
from tests.support.bench import OFFLOAD, SLOW, STOP, Bench, serving, with_flags


@asynccontextmanager
async def client(bench: Bench, key: str = "any", retries: int = 0) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{bench.server.url}/v1", api_key=key, max_retries=retries, timeout=30.0
    ) as connected:
        yield connected


async def say(asked: AsyncOpenAI, model: str, prompt: str = "hello") -> str | None:
    answer = await asked.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], max_tokens=8
    )
    return answer.choices[0].message.content


async def test_every_kind_of_call(tmp_path: Path) -> None:
    async with serving({"org/model:7b": OFFLOAD, "b": STOP}, tmp_path) as bench, client(bench) as asked:
        assert [model.id async for model in asked.models.list()] == ["org/model:7b", "b"]
        assert await say(asked, "org/model:7b") == expected_text("org/model:7b", "hello", 8)
        completion = await asked.completions.create(model="b", prompt="hello", max_tokens=4)
        assert completion.choices[0].text == expected_text("b", "hello", 4)
        embedded = await asked.embeddings.create(model="org/model:7b", input="hello")
        assert embedded.data[0].embedding == embedding("org/model:7b", "hello")
        stream = await asked.completions.create(model="b", prompt="hello", max_tokens=4, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == expected_text("b", "hello", 4)
        for model in ("b", "org/model:7b"):
            assert (await asked.models.retrieve(model)).id == model


async def test_a_model_in_the_path(tmp_path: Path) -> None:
    async with serving({"org/model:7b": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        base_url = f"{bench.server.url}/upstream/org/model:7b/v1"
        async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as asked:
            assert await say(asked, "whatever") == expected_text("org/model:7b", "hello", 8)


async def test_an_unknown_model(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench, client(bench) as asked:
        with pytest.raises(openai.NotFoundError) as raised:
            await say(asked, "nobody")
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


async def test_keys(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path, api_keys=["right", "also-right"]) as bench:
        async with client(bench, "wrong") as asked:
            with pytest.raises(openai.AuthenticationError):
                await say(asked, "a")
            with pytest.raises(openai.AuthenticationError):
                await asked.models.list()
        async with client(bench, "also-right") as asked:
            assert await say(asked, "a") == expected_text("a", "hello", 8)
        assert (await bench.call("GET /health")).status == 200


async def test_an_engine_with_a_key_of_its_own(tmp_path: Path) -> None:
    locked = with_flags(OFFLOAD, "--api-key", "engine-secret")
    async with serving({"a": locked, "b": locked}, tmp_path) as bench, client(bench) as asked:
        for name in "aba":
            assert await say(asked, name) == expected_text(name, "hello", 8)


async def test_a_full_queue(tmp_path: Path) -> None:
    models = {"a": with_flags(OFFLOAD, *SLOW), "b": OFFLOAD}
    async with serving(models, tmp_path, queue_limit_requests=2) as bench, client(bench) as asked:
        async with bench.held_stream("a") as stream, asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(say(asked, "b")) for _ in range(2)]
            await bench.until_model("b", queue_depth=2)
            with pytest.raises(openai.RateLimitError) as raised:
                await say(asked, "b")
            assert raised.value.code == "queue_full"
            assert int(raised.value.response.headers["retry-after"]) > 0
            await bench.let_go("a")
            await stream.read()
        assert [task.result() for task in waiting] == [expected_text("b", "hello", 8)] * 2


async def test_a_body_that_is_too_large(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path, max_body_bytes=10_000) as bench, client(bench) as asked:
        with pytest.raises(openai.APIStatusError) as raised:
            await say(asked, "a", "x" * 20_000)
        assert (raised.value.status_code, raised.value.code) == (413, "request_too_large")


async def test_a_stream_whose_engine_dies_raises(tmp_path: Path) -> None:
    async with serving({"a": with_flags(OFFLOAD, *SLOW)}, tmp_path) as bench, client(bench) as asked:
        stream = await asked.chat.completions.create(
            model="a", messages=[{"role": "user", "content": "hello"}], max_tokens=200, stream=True
        )
        said = ""
        with pytest.raises(openai.APIError, match="died before it answered|incomplete"):
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
                if len(said.split()) == 3:
                    bench.engine("a").kill()
        assert expected_text("a", "hello", 200).startswith(said)


COMMENTS_SOON = {"wait_comments_after_seconds": 0.2, "keepalive_seconds": 0.2}


async def test_a_stream_that_waits_for_a_start_is_kept_open_and_then_answered(tmp_path: Path) -> None:
    models = {"a": with_flags(STOP, "--startup-delay-ms", "1500")}
    async with serving(models, tmp_path, **COMMENTS_SOON) as bench, client(bench) as asked:
        # The head comes before the engine has started.
        stream = await asked.chat.completions.create(
            model="a", messages=[{"role": "user", "content": "hello"}], max_tokens=8, stream=True
        )
        assert await bench.process_state("a") in ("starting", "not_started")
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert said == expected_text("a", "hello", 8)


async def test_a_stream_that_waits_for_a_start_that_fails_raises(tmp_path: Path) -> None:
    models = {"a": with_flags(STOP, "--sim-fault", "start-hang")}
    limits = {"start_timeout_seconds": 1.5, **COMMENTS_SOON}
    async with serving(models, tmp_path, **limits) as bench, client(bench) as asked:
        stream = await asked.chat.completions.create(
            model="a", messages=[{"role": "user", "content": "hello"}], max_tokens=8, stream=True
        )
        with pytest.raises(openai.APIError, match="could not be started") as raised:
            async for _ in stream:
                pass
        assert raised.value.code == "model_unavailable"


async def test_the_clients_own_retries_outlast_the_back_off(tmp_path: Path) -> None:
    trigger = tmp_path / "exits"
    trigger.touch()
    models = {"a": with_flags(STOP, "--sim-fault", f"start-exit@{trigger}")}
    async with serving(models, tmp_path) as bench, client(bench, retries=2) as asked, asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(say(asked, "a"))
        await bench.server.wait_for_log("could not bring the model onto the GPU")
        trigger.unlink()
        assert await answer == expected_text("a", "hello", 8)


async def test_no_more_in_flight_than_the_engine_takes(tmp_path: Path) -> None:
    models = {"a": with_flags({**OFFLOAD, "max_in_flight": 3}, "--latency-ms", "20")}
    async with serving(models, tmp_path) as bench, client(bench) as asked:
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(say(asked, "a", f"number {number}"))
        assert (await bench.stats("a"))["peak_running"] == 3
