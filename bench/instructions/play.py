"""Requests and chunks through the real gateway, dispatcher and scheduler, without sockets: ``play.py KIND COUNT``.

It is run under valgrind by ``run.py``, twice with different counts: what the difference costs is the price of a unit.
"""

import asyncio
import gc
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmux.gateway import Gateway, GatewayOptions
from tests.support.scripted import model, scripted_runtime

MODELS = 40
CONNECTIONS = 64
CHUNK_BYTES = 250

_HEAD = b"HTTP/1.1 200 OK\r\ndate: Sat, 28 Nov 2026 09:00:00 GMT\r\nserver: uvicorn\r\n"
ANSWERS = [
    _HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % length + b"x" * length
    for length in range(2048, 2048 + MODELS)
]
"""Of different lengths, as real ones are: no head is the last one again."""
STREAM_HEAD = _HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\n\n\r\n" % (CHUNK_BYTES, b"data: ".ljust(CHUNK_BYTES - 2, b"y"))


class Wire(asyncio.Transport):
    """A transport that counts what is written to it, and remembers in which order those to engines were written to."""

    def __init__(self, asked: list["Wire"] | None = None, on_all_asked: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._on_all_asked = on_all_asked
        self.protocol: asyncio.Protocol | None = None
        self.written_bytes = 0
        self._asked = asked
        self._closes = False

    def write(self, data: Any) -> None:
        self.written_bytes += len(data)
        if self._asked is not None:
            self._asked.append(self)
            if len(self._asked) == CONNECTIONS:
                self._on_all_asked()

    def is_closing(self) -> bool:
        return self._closes

    def close(self) -> None:
        self._closes = True

    abort = close

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class SocketlessLoop(asyncio.SelectorEventLoop):
    """Hands out wires instead of connections, and keeps what would accept clients."""

    def __init__(self) -> None:
        super().__init__()
        self.accept: Callable[[], asyncio.Protocol] = asyncio.Protocol
        self.asked: list[Wire] = []
        """The engines' ends of requests that are not answered yet."""
        self.all_asked = asyncio.Event()
        """Whether there has been one of each client. Waiting for it must not spin: that would count."""

    async def create_server(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
        self.accept = protocol_factory
        return await super().create_server(protocol_factory, "127.0.0.1", 0, family=socket.AF_INET)

    async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
        wire = Wire(self.asked, self.all_asked.set)
        wire.protocol = protocol_factory()
        wire.protocol.connection_made(wire)
        return wire, wire.protocol

    def connect(self) -> Wire:
        """A client of the gateway."""
        wire = Wire()
        wire.protocol = self.accept()
        wire.protocol.connection_made(wire)
        return wire


def request(number: int, *, streams: bool = False) -> bytes:
    """One of 40 requests of about 1 KB and of different lengths, for the model that serves."""
    content = "y" * (910 + number % MODELS)
    stream = '"stream":true,' if streams else ""
    body = f'{{"messages":[{{"role":"user","content":"{content}"}}],{stream}"max_tokens":16,"model":"model-00"}}'
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def hand(wire: Wire, data: bytes) -> None:
    """What the event loop does with data that has come."""
    assert wire.protocol is not None
    wire.protocol.data_received(data)


async def connected(loop: SocketlessLoop, *, streams: bool) -> tuple[list[Wire], list[Wire]]:
    """The clients, each with a request at the engine, and the engine's ends of these."""
    clients = [loop.connect() for _ in range(CONNECTIONS)]
    for client in clients:
        hand(client, request(0, streams=streams))
        # In an iteration of its own: what all clients may do in one is bounded.
        await asyncio.sleep(0)
    await loop.all_asked.wait()
    engines, loop.asked[:] = list(loop.asked), []
    return clients, engines


def play_requests(loop: SocketlessLoop, clients: list[Wire], engines: list[Wire], count: int) -> None:
    """Answer those that are at the engine, then send and answer ``count`` more, 64 at a time."""
    for engine in engines:
        hand(engine, ANSWERS[0])
    prepared = [request(number) for number in range(MODELS)]
    before = sum(client.written_bytes for client in clients)
    for first in range(0, count, CONNECTIONS):
        for number, client in enumerate(clients, first):
            hand(client, prepared[number % MODELS])
        assert len(loop.asked) == CONNECTIONS, "a request has not been sent to the engine at once"
        for number, engine in enumerate(loop.asked, first):
            hand(engine, ANSWERS[number % MODELS])
        loop.asked.clear()
    assert sum(client.written_bytes for client in clients) - before > count * 2048, "some were not answered"


def play_chunks(clients: list[Wire], engines: list[Wire], count: int) -> None:
    """One chunk for each stream in turn, ``count`` altogether."""
    for engine in engines:
        hand(engine, STREAM_HEAD)
    before = sum(client.written_bytes for client in clients)
    for _ in range(0, count, CONNECTIONS):
        for engine in engines:
            hand(engine, CHUNK)
    assert sum(client.written_bytes for client in clients) - before == count * len(CHUNK), "chunks were lost"


async def play(kind: str, count: int) -> None:
    """Do ``count`` units of a kind, which is a multiple of 64."""
    loop = cast("SocketlessLoop", asyncio.get_running_loop())
    specs = [model(f"model-{number:02d}") for number in range(MODELS)]
    async with scripted_runtime(*specs) as runtime:
        gateway = Gateway(runtime.access, GatewayOptions(), runtime.controller.run)
        await gateway.listen("127.0.0.1", 0)
        clients, engines = await connected(loop, streams=kind == "chunk")
        gc.disable()  # The server collects garbage so rarely that it is no part of the price.
        if kind == "request":
            play_requests(loop, clients, engines, count)
        else:
            play_chunks(clients, engines, count)
        for client in clients:
            assert client.protocol is not None
            client.protocol.connection_lost(None)
        await gateway.close(1.0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=SocketlessLoop) as runner:
        runner.run(play(sys.argv[1], int(sys.argv[2])))
