"""What every kind of engine must do, with real processes and sockets and a real ``llmux serve``."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conformance.kinds import Kind, Place, each
from tests.support.server import LlmuxProcess, chat, http_client, llmux_server

pytestmark = pytest.mark.anyio

STARTED = r"engine started.* pid=(\d+)"
ROUNDS = 3
LONG_TOKENS = 60
DEADLINE_SECONDS = 60.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as cleanup:
        yield Place(tmp_path, cleanup)


async def ask(session: aiohttp.ClientSession, server: LlmuxProcess, model: str, prompt: str, **more: Any) -> str:
    """The text of an answer that must succeed."""
    body = chat(model, prompt, temperature=0, **more)
    async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
        document = await response.json()
        assert response.status == 200, document
        return str(document["choices"][0]["message"]["content"])


async def stream(session: aiohttp.ClientSession, server: LlmuxProcess, model: str, prompt: str, **more: Any) -> str:
    """The text of a streamed answer, which must end as it should."""
    body = chat(model, prompt, temperature=0, stream=True, **more)
    async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        return text_of(await response.text())


def text_of(events: str) -> str:
    """What the events of a stream say together."""
    assert events.rstrip().endswith("data: [DONE]"), events[-400:]
    said = re.findall(r'"content": ?"((?:[^"\\]|\\.)*)"', events)
    return "".join(said)


async def rest_of(response: aiohttp.ClientResponse) -> str:
    """What else comes of an answer that may break off."""
    rest = b""
    with suppress(aiohttp.ClientPayloadError):
        async for piece in response.content.iter_any():
            rest += piece
    return rest.decode()


async def status_of(session: aiohttp.ClientSession, server: LlmuxProcess, model: str) -> dict[str, Any]:
    """The model's entry in the list of models."""
    async with session.get(f"{server.url}/v1/models/{model}") as response:
        document: dict[str, Any] = await response.json()
        return document


async def until(condition: Any) -> None:
    """Poll until the coroutine function returns something true."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)


@each()
async def test_models_take_turns_and_their_answers_stay_the_same(kind: Kind, place: Place) -> None:
    """Start, leave and return by each of its steps, canary."""
    for number, eviction in enumerate(kind.evictions):
        directory = place.directory / str(number)
        directory.mkdir()
        async with (
            llmux_server(kind.config(replace(place, directory=directory), eviction=eviction), directory) as server,
            http_client() as session,
        ):
            first = {model: await ask(session, server, model, "once upon a time") for model in "ab"}
            assert all(first.values())
            for _ in range(ROUNDS):
                for model in "ab":
                    assert await ask(session, server, model, "once upon a time") == first[model], eviction
                    if kind.streams:
                        assert await stream(session, server, model, "once upon a time") == first[model], eviction
            assert not server.find_in_log("eviction failed"), eviction
            if kind.has_canary and not eviction.endswith("stop"):
                async with session.get(f"{server.url}/metrics") as response:
                    checks = re.findall(r"^llmux_canary_checks_total\{.*\} (\d+)", await response.text(), re.MULTILINE)
                assert checks and all(int(number) > 0 for number in checks)


@each()
async def test_a_wrong_start_is_said_and_others_are_served(kind: Kind, place: Place) -> None:
    config = kind.config(place)
    config["models"]["broken"] = dict(kind.broken(place))
    async with llmux_server(config, place.directory) as server, http_client() as session:
        async with session.post(f"{server.url}/v1/chat/completions", json=chat("broken", "hello")) as response:
            assert response.status in (502, 503), await response.text()
            document = await response.json()
        assert re.search(kind.broken_cause, document["error"]["message"]), document
        assert await ask(session, server, "a", "hello")
        assert (await status_of(session, server, "broken"))["status"]["value"] in ("failed", "loading")


@each(lambda kind: kind.owns_processes)
async def test_an_engine_that_dies_idle_is_started_again(kind: Kind, place: Place) -> None:
    async with llmux_server(kind.config(place), place.directory) as server, http_client() as session:
        first = await ask(session, server, "a", "hello")
        await kill_engine(server)
        assert await ask(session, server, "a", "hello") == first


@each(lambda kind: kind.owns_processes)
async def test_an_engine_that_dies_while_it_starts_is_started_again(kind: Kind, place: Place) -> None:
    async with llmux_server(kind.config(place), place.directory) as server, http_client() as session:
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(status_of_answer(session, server, "a"))
            await kill_engine(server)
        # The client of a start that failed is told so, and whoever asks after the back-off is served.
        assert asked.result() in (200, 503)

        async def is_served() -> bool:
            return await status_of_answer(session, server, "a") == 200

        await until(is_served)


@each(lambda kind: kind.owns_processes and kind.streams and bool(kind.token_delay))
async def test_a_stream_whose_engine_dies_ends_with_an_error(kind: Kind, place: Place) -> None:
    async with llmux_server(kind.config(place, slow=True), place.directory) as server, http_client() as session:
        body = chat("a", "hello", stream=True, max_tokens=LONG_TOKENS)
        async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            await response.content.readuntil(b"\n\n")
            await kill_engine(server)
            rest = await rest_of(response)
        assert '"error"' in rest
        assert "[DONE]" not in rest
        assert await ask(session, server, "a", "hello")


@each(lambda kind: kind.streams and bool(kind.token_delay))
async def test_a_drain_lets_a_stream_end(kind: Kind, place: Place) -> None:
    async with llmux_server(kind.config(place, slow=True), place.directory) as server, http_client() as session:
        alone = await stream(session, server, "a", "hello", max_tokens=LONG_TOKENS)
        body = chat("a", "hello", stream=True, temperature=0, max_tokens=LONG_TOKENS)
        async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
            begun = (await response.content.readuntil(b"\n\n")).decode()
            async with asyncio.TaskGroup() as tasks:
                other = tasks.create_task(ask(session, server, "b", "hello"))
                text = begun + (await response.content.read()).decode()
        assert text_of(text) == alone
        assert other.result()


@each(lambda kind: kind.streams and bool(kind.token_delay))
async def test_a_client_that_leaves_frees_its_place(kind: Kind, place: Place) -> None:
    async with llmux_server(kind.config(place, slow=True), place.directory) as server, http_client() as session:
        body = chat("a", "hello", stream=True, max_tokens=LONG_TOKENS * 100)
        async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            response.close()

        async def is_idle() -> bool:
            return (await status_of(session, server, "a"))["in_flight"] == 0

        await until(is_idle)
        assert await ask(session, server, "b", "hello")


@each()
async def test_nothing_is_left_when_llmux_ends(kind: Kind, place: Place) -> None:
    async with llmux_server(kind.config(place), place.directory) as server, http_client() as session:
        await ask(session, server, "a", "hello")
        family = server.descendants()
        assert await server.terminate() == 0
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]


async def status_of_answer(session: aiohttp.ClientSession, server: LlmuxProcess, model: str) -> int:
    """The status of an answer that may fail."""
    async with session.post(f"{server.url}/v1/chat/completions", json=chat(model, "hello")) as response:
        await response.read()
        return response.status


async def kill_engine(server: LlmuxProcess) -> None:
    """SIGKILL the engine that was started last, once its start has been logged."""
    await server.wait_for_log(STARTED)
    os.kill(int(server.find_in_log(STARTED)[-1][1]), signal.SIGKILL)
