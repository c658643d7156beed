"""A gateway with real sockets: scripted engines behind it, raw clients before it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from llmux.access import Upstream
from llmux.gateway import Gateway, GatewayOptions
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
    """A client that decides about every byte."""

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
        """Everything until the server closes; raises ConnectionResetError if it does not do so cleanly."""
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
        """Stop listening and cut every connection."""
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
    """A running gateway and all that is around it."""

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


@asynccontextmanager
async def running_gateway(
    script: Script = echo, *, options: GatewayOptions | None = None, access: FakeAccess | None = None
) -> AsyncIterator[Bench]:
    """A gateway before one engine that serves the model ``m``; the model ``cold`` is asleep."""
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
