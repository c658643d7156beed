"""A gateway on real sockets, between a scripted engine and raw clients."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from llmux.access import Upstream
from llmux.gateway import Gateway, GatewayOptions
from llmux.gateway.proxy.client_connection import ClientConnection
from llmux.gateway.proxy.engine_connection import EngineConnection
from llmux.gateway.proxy.pool import EnginePool, EnginePools
from llmux.gateway.proxy.turns import Turns
from llmux.gateway.state import GatewayState
from llmux.gateway.statistics import GatewayStatistics
from tests.support.access import DEADLINE_SECONDS, FakeAccess


@dataclass(slots=True)
class Message:
    """One HTTP message as it was read from a socket."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    raw_head: bytes = b""
    complete: bool = True
    """False: the connection ended before the message did."""

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.fields if key == name.encode()]

    def get(self, name: str) -> bytes | None:
        found = self.all(name)
        assert len(found) <= 1, f"{name} is there {len(found)} times"
        return found[0] if found else None


def parse_head(raw: bytes) -> Message:
    start, *lines = raw[:-4].split(b"\r\n")
    fields = [(line.partition(b":")[0].lower(), line.partition(b":")[2].strip()) for line in lines]
    return Message(start, fields, raw_head=raw)


async def read_chunked(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    body = b""
    try:
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            piece = await reader.readexactly(size + 2)
            if not size:
                return body, True
            body += piece[:-2]
    except (asyncio.IncompleteReadError, ConnectionError):
        return body, False


@dataclass(slots=True)
class RawClient:
    """A client whose every byte is the test's."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)

    async def read_head(self) -> Message:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return parse_head(await self.reader.readuntil(b"\r\n\r\n"))

    async def answer(self, *, to_head: bool = False) -> Message:
        """Read one whole answer."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            message = await self.read_head()
            if to_head or message.status in (204, 304) or message.status < 200:
                return message
            if message.get("transfer-encoding") is not None:
                message.body, message.complete = await read_chunked(self.reader)
            elif (length := message.get("content-length")) is not None:
                try:
                    message.body = await self.reader.readexactly(int(length))
                except asyncio.IncompleteReadError as error:
                    message.body, message.complete = error.partial, False
                except ConnectionError:
                    message.complete = False
            else:
                message.body = await self.reader.read()
            return message

    async def chunk(self) -> bytes:
        """Read one chunk of a chunked answer."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        """Everything until the server closes; raises ConnectionResetError if it resets the connection."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass(slots=True)
class EngineSide:
    """One connection as the scripted engine sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)

    def answer(self, body: bytes, *, status: str = "200 OK", fields: bytes = b"") -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n".encode()
        self.send(head + fields + b"\r\n" + body)

    def begin_stream(self) -> None:
        self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        self.writer.transport.abort()

    async def until_closed(self) -> None:
        """Wait until llmux closes the connection."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            with suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


Script = Callable[[Message, EngineSide], Awaitable[None]]


async def echo(request: Message, engine: EngineSide) -> None:
    engine.answer(request.body or b"nothing")


@dataclass(slots=True)
class ScriptedEngine:
    """A raw-socket engine; ``script`` answers each request."""

    script: Script = echo
    seen: list[Message] = field(default_factory=list)
    connections: list[EngineSide] = field(default_factory=list)
    port: int = 0
    server: asyncio.Server | None = None
    upstream: Upstream = field(init=False)
    """One object, as an instance keeps one: the gateway finds its connections by it."""

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**26)
        if not self.port:
            self.port = self.server.sockets[0].getsockname()[1]
            self.upstream = Upstream("127.0.0.1", self.port)

    def stop(self) -> None:
        """Stop listening and reset every connection."""
        if self.server is not None:
            self.server.close()
        for side in self.connections:
            side.reset()
        self.connections.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        side = EngineSide(reader, writer)
        self.connections.append(side)
        try:
            while True:
                request = parse_head(await reader.readuntil(b"\r\n\r\n"))
                request.body = await reader.readexactly(int(request.get("content-length") or 0))
                self.seen.append(request)
                side.requests += 1
                await self.script(request, side)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        finally:
            writer.close()
            side.closed.set()


@dataclass(slots=True)
class Bench:
    """A running gateway with its access, its engine and its clients."""

    gateway: Gateway
    access: FakeAccess
    engine: ScriptedEngine
    port: int
    clients: list[RawClient] = field(default_factory=list)

    async def client(self, *, buffer_bytes: int = 2**26) -> RawClient:
        client = RawClient(*await asyncio.open_connection("127.0.0.1", self.port, limit=buffer_bytes))
        self.clients.append(client)
        return client

    async def ask(self, raw: bytes, **options: bool) -> Message:
        """One request on a connection of its own."""
        client = await self.client()
        client.send(raw)
        return await client.answer(**options)


class FakeTransport(asyncio.Transport):
    """Records what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.written_at_once = b""
        """What uvloop would not have put off until the end of the loop's turn."""
        self._buffers = True
        self.reads = True
        self.closed = False
        self.aborted = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data
        if not self._buffers:
            self.written_at_once += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._buffers = high != 0

    def get_write_buffer_size(self) -> int:
        return 0


IN_MEMORY_UPSTREAM = Upstream("127.0.0.1", 8001)


def spawn_nothing(coroutine: Coroutine[Any, Any, None]) -> None:
    coroutine.close()
    raise AssertionError("a task was started although an idle connection was there")


def run_in_no_thread(*_arguments: Any) -> asyncio.Future[Any]:
    raise AssertionError("a body was taken for a large one")


@dataclass(slots=True)
class InMemoryRelay:
    """One client's connection and one idle connection to the engine of the model ``m``, without sockets."""

    access: FakeAccess = field(default_factory=lambda: FakeAccess(awake={"m": IN_MEMORY_UPSTREAM}))
    options: GatewayOptions = field(default_factory=GatewayOptions)
    client: ClientConnection = field(init=False)
    client_side: FakeTransport = field(default_factory=FakeTransport)
    engine: EngineConnection = field(init=False)
    engine_side: FakeTransport = field(init=False)
    pool: EnginePool = field(init=False)
    soon: list[Callable[[], None]] = field(default_factory=list)
    """What the event loop was asked to call in its next iteration."""

    def __post_init__(self) -> None:
        options, statistics = self.options, GatewayStatistics()
        turns = Turns(self.soon.append)
        pools = EnginePools(options, statistics, turns)
        state = GatewayState(
            self.access,
            options,
            spawn_nothing,
            pools,
            statistics,
            lambda: None,
            turns,
            run_in_no_thread,
        )
        self.pool = pools.of(IN_MEMORY_UPSTREAM)
        self.connect_engine()
        self.client = ClientConnection(state)
        self.client.connection_made(self.client_side)

    def connect_engine(self) -> None:
        """Have an idle connection to the engine, be it the first or in place of one that was lost."""
        self.engine_side = FakeTransport()
        self.engine = EngineConnection(self.pool)
        self.engine.connection_made(self.engine_side)
        self.engine.become_idle()

    def receive(self, data: bytes) -> None:
        """Let the client's connection receive ``data`` and work all of it off."""
        self.client.data_received(data)
        while self.soon:
            self.next_iteration()

    def next_iteration(self) -> None:
        calls, self.soon[:] = self.soon[:], []
        for call in calls:
            call()


@asynccontextmanager
async def running_gateway(
    script: Script = echo, *, options: GatewayOptions | None = None, access: FakeAccess | None = None
) -> AsyncIterator[Bench]:
    """A gateway with one engine, which serves the model ``m``; the model ``cold`` is asleep."""
    engine = ScriptedEngine(script)
    await engine.start()
    access = access or FakeAccess()
    access.awake.setdefault("m", engine.upstream)
    access.asleep.append("cold")
    async with asyncio.TaskGroup() as tasks:
        gateway = Gateway(access, options or GatewayOptions(), tasks.create_task)
        bench = Bench(gateway, access, engine, await gateway.listen("127.0.0.1", 0))
        try:
            yield bench
        finally:
            await gateway.close(0.0)
            for client in bench.clients:
                await client.close()
            engine.stop()
    assert access.problems == []
    assert access.leases == {}, "a lease was neither ended nor given back"


def post(body: bytes, *fields: str, path: str = "/v1/chat/completions") -> bytes:
    """A request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", "Host: test", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *fields, "", ""]).encode() + body


def get(path: str, *fields: str, method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *fields, "", ""]).encode()
