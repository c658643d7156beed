"""A server over simulated engines with a client for each of its sides, and a search for leftovers at its end."""

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from llmux.simulation.engine.text import expected_text
from llmux.simulation.ledger import Ledger, LedgerSnapshot
from tests.support.server import LlmuxProcess, chat, http_client, llmux_server, simulated_config

DEADLINE_SECONDS = 30.0

OFFLOAD = {"eviction": "offload+keep_running"}
DISCARD = {"eviction": "discard+keep_running"}
STOP = {"eviction": "retain+stop"}
SLOW = ("--token-ms", "50")
"""Flags of an engine whose streams last long enough to be caught in the middle."""
HELD_TOKENS = 200


def with_flags(settings: Mapping[str, Any], *flags: str) -> dict[str, Any]:
    """A model's settings with more arguments for its engine."""
    return {**settings, "extra_args": [*settings.get("extra_args", ()), *flags]}


async def eventually(
    reached: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str, deadline_seconds: float = DEADLINE_SECONDS
) -> None:
    """Wait for a condition that nothing announces."""
    end = time.monotonic() + deadline_seconds
    while True:
        result = reached()
        if result if isinstance(result, bool) else await result:
            return
        assert time.monotonic() < end, f"not reached in {deadline_seconds} s: {what}"
        await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def document(self) -> Any:
        """The JSON body."""
        return json.loads(self.text)

    @property
    def code(self) -> str:
        """The ``code`` of an error of llmux's own."""
        assert self.headers.get("x-llmux-error") == "1", self.text
        return str(self.document["error"]["code"])

    @property
    def said(self) -> str:
        """The text of a chat answer."""
        assert self.status == 200, f"{self.status}: {self.text}"
        return str(self.document["choices"][0]["message"]["content"])


class Stream:
    """A chat stream as its client sees it, byte by byte: what was said before it broke off counts too."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.events: list[str] = []
        self.ended = False
        """Whether the last chunk came, the empty one; a stream that was cut off has none."""

    async def read_head(self) -> int:
        """The status, once there is one; the headers are passed over."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1])

    @property
    def said(self) -> str:
        """The text so far."""
        documents = [json.loads(event) for event in self.events if event != "[DONE]"]
        return "".join(choice["delta"].get("content") or "" for one in documents for choice in one.get("choices", ()))

    @property
    def is_complete(self) -> bool:
        """Whether it ended as a whole stream does."""
        return self.ended and bool(self.events) and self.events[-1] == "[DONE]"

    async def read(self, count: int | None = None) -> None:
        """Read so many more events, or all that come."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while count is None or count > 0:
                try:
                    line = await self._reader.readline()
                except ConnectionError:
                    return
                if not line:
                    return
                if line == b"0\r\n":
                    self.ended = True
                    return
                if line.startswith(b"data: "):
                    self.events.append(line.removeprefix(b"data: ").decode().strip())
                    count = None if count is None else count - 1

    async def error_code(self) -> str:
        """The ``code`` of an error that came instead of the stream."""
        head = await self._reader.readuntil(b"}}")
        return str(json.loads(head)["error"]["code"])

    def leave(self) -> None:
        """Close the connection, whatever is still to come."""
        self._writer.close()


class Bench:
    """A running server and how to talk to it, to its control API, and behind its back to its engines."""

    def __init__(self, server: LlmuxProcess, session: aiohttp.ClientSession, ledger: Ledger, temporary: Path) -> None:
        self.server = server
        self.session = session
        self.ledger = ledger
        self.temporary = temporary

    async def call(self, call: str, body: Any = None, **options: Any) -> Answer:
        """``METHOD /path`` on the main port, or with a whole URL elsewhere; a body that is not None is sent as JSON."""
        method, _, path = call.partition(" ")
        url = path if path.startswith("http") else self.server.url + path
        if body is not None:
            options["json"] = body
        async with self.session.request(method, url, **options) as response:
            return Answer(response.status, response.headers, await response.text())

    async def ask(self, model: str, prompt: str = "hello", **fields: Any) -> Answer:
        """One chat request."""
        return await self.call("POST /v1/chat/completions", chat(model, prompt, **fields))

    async def expect(self, model: str, prompt: str = "hello", **fields: Any) -> Answer:
        """One chat request that has to be answered rightly."""
        answer = await self.ask(model, prompt, **fields)
        assert answer.said == expected_text(model, prompt, fields.get("max_tokens", 8))
        assert answer.document["model"] == model
        return answer

    @asynccontextmanager
    async def stream(self, model: str, prompt: str = "hello", **fields: Any) -> AsyncIterator[Stream]:
        """A streamed chat request that was accepted; its connection is closed at the end of the block."""
        stream = await self.begin(model, prompt, stream=True, **fields)
        try:
            assert await stream.read_head() == 200
            yield stream
        finally:
            stream.leave()

    async def begin(self, model: str, prompt: str = "hello", **fields: Any) -> Stream:
        """Send a chat request on a connection of its own and do not wait for any answer."""
        url = urlsplit(self.server.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        body = json.dumps(chat(model, prompt, **fields)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        return Stream(reader, writer)

    async def status(self) -> Any:
        """The control API's status document."""
        return (await self.call("GET /control/status")).document

    async def state(self) -> str:
        """The whole's state."""
        return str((await self.status())["state"])

    async def process_state(self, model: str) -> str:
        """One model's state."""
        return str((await self.status())["models"][model]["process_state"])

    async def until_state(self, wanted: str) -> None:
        """Wait for a state of the whole."""

        async def reached() -> bool:
            return await self.state() == wanted

        await eventually(reached, f"state {wanted}")

    async def until_internal_state(self, model: str, wanted: str) -> None:
        """Wait until a model's latest transition was into this state (``draining``, say)."""

        async def reached() -> bool:
            story = (await self.call(f"GET /control/models/{model}/story")).document["story"]
            return bool(story) and story[-1]["after"]["state"] == wanted

        await eventually(reached, f"{model} {wanted}")

    async def until_model(self, model: str, **wanted: Any) -> None:
        """Wait until a model's entry in the status document has these values."""

        async def reached() -> bool:
            entry = (await self.status())["models"][model]
            return all(entry[key] == value for key, value in wanted.items())

        await eventually(reached, f"{model}: {wanted}")

    def engine(self, model: str) -> psutil.Process:
        """The root process of a model's engine, the one started last."""
        return psutil.Process(int(self._started(model)[0]))

    async def switches(self) -> int:
        """How many switches there have been. The log may be behind what clients have seen."""
        families = text_string_to_metric_families((await self.call("GET /metrics")).text)
        return int(
            sum(one.value for family in families for one in family.samples if one.name == "llmux_switches_total")
        )

    def starts(self, model: str) -> int:
        """How often an engine was started for the model."""
        return len(self.server.find_in_log(rf"engine started .*model={model} "))

    async def engine_call(self, model: str, call: str, body: Any = None) -> Answer:
        """A call to the engine itself, past llmux, that has to succeed."""
        method, _, path = call.partition(" ")
        _, port, socket_path = self._started(model)
        connector = aiohttp.UnixConnector(socket_path) if socket_path else aiohttp.TCPConnector()
        url = f"http://127.0.0.1:{port or 80}{path}"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, url, json=body, headers={"Connection": "close"}) as response,
        ):
            assert response.status == 200, await response.text()
            return Answer(response.status, response.headers, await response.text())

    async def stats(self, model: str) -> Any:
        """The engine's own account of what it was asked to do."""
        return (await self.engine_call(model, "GET /stats")).document

    @asynccontextmanager
    async def held_stream(self, model: str, prompt: str = "hello") -> AsyncIterator[Stream]:
        """A stream that stands still after its first token until ``let_go``; the model needs SLOW tokens."""
        async with self.stream(model, prompt, max_tokens=HELD_TOKENS) as stream:
            await stream.read(1)
            await self.hold(model)
            assert (await self.stats(model))["running"] == 1, "the answer was complete before it was held"
            yield stream

    async def hold(self, model: str) -> None:
        """Make the engine produce no more tokens until ``let_go``; what runs stays running."""
        await self.engine_call(model, "POST /pause?mode=keep")

    async def let_go(self, model: str) -> None:
        """Undo ``hold``; from now on tokens come without delay."""
        await self.engine_call(model, "POST /control/latency", {"latency_ms": 0, "token_ms": 0})
        await self.engine_call(model, "POST /resume")

    def _started(self, model: str) -> tuple[str, str | None, str | None]:
        """The pid, the port and the path of the Unix socket of the engine started last."""
        pattern = rf"engine started .*model={model} .*pid=(\d+) (?:port=(\d+)|socket=(\S+))"
        started = self.server.find_in_log(pattern)
        assert started, f"no engine of {model} was started"
        return started[-1][1], started[-1][2], started[-1][3]


@asynccontextmanager
async def serving(
    models: Mapping[str, Mapping[str, Any]],
    directory: Path,
    *arguments: str,
    gpu_mib: int = 1000,
    environment: Mapping[str, str] | None = None,
    waits_until_warm: bool = True,
    **top_level: Any,
) -> AsyncIterator[Bench]:
    """A server over simulated engines that share a virtual GPU on which one of them fits.

    At the end it is stopped, and nothing may be left of it: no process, no temporary file, no claim; and nobody may
    ever have asked the GPU for more than was free.
    """
    ledger = Ledger(directory / "gpu.json").create(gpu_mib)
    temporary = Path(tempfile.mkdtemp(prefix="bench", dir="/tmp"))
    try:
        config = simulated_config(models, ledger=ledger.path, **top_level)
        own = {"TMPDIR": str(temporary), **(environment or {})}
        running = llmux_server(config, directory, *arguments, environment=own, waits_until_warm=waits_until_warm)
        async with running as server, http_client() as session:
            yield Bench(server, session, ledger, temporary)
        await nothing_left(ledger, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


async def nothing_left(ledger: Ledger, temporary: Path, deadline_seconds: float = 5.0) -> LedgerSnapshot:
    """The ledger after the end, which has to be free, never refused, and without temporary files beside it."""
    await eventually(lambda: not ledger.snapshot().allocations, "no allocation left", deadline_seconds)
    await eventually(lambda: os.listdir(temporary) == [], f"no file left in {temporary}", deadline_seconds)  # noqa: PTH208
    book = ledger.snapshot()
    assert book.refused == ()
    assert book.peak_mib <= book.capacity_mib
    return book
