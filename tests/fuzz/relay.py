"""One client, llmux's data plane and one engine, without sockets: what an input is given to, and what came of it."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from llmux.access import Upstream
from llmux.gateway import Gateway, GatewayOptions
from llmux.gateway.proxy.client_connection import ClientConnection
from llmux.gateway.proxy.engine_connection import EngineConnection
from tests.fuzz.loop import DeterministicLoop
from tests.support.access import FakeAccess

READ_BYTES = 256 * 1024
"""The most that uvloop reads at once."""
MAX_BODY_BYTES = 8 * 1024 * 1024
UPSTREAM = Upstream("127.0.0.1", 8001)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
_PREFIX = re.compile(rb"req-[0-9a-f]{12}-")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Fault(AssertionError):
    """Something that must not happen; ``kind`` tells one fault from another."""

    def __init__(self, kind: str, detail: object = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


class Wire(asyncio.Transport):
    """A transport that keeps what is written to it, and reports its end to its protocol in the loop's next turn."""

    def __init__(self, loop: DeterministicLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self.pieces: list[bytes] = []
        self.reads = True
        self.closed = False

    @property
    def written(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    def write(self, data: Any) -> None:
        if self.closed:
            raise Fault("written after the close", bytes(data[:80]))
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_reading(self) -> bool:
        return self.reads

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 12345) if name in ("peername", "sockname") else default


@dataclass(slots=True)
class Relay:
    """A fresh connection from a client, and an idle one to the engine. ``answer`` is what the engine says each time."""

    loop: DeterministicLoop
    access: FakeAccess = field(default_factory=lambda: FakeAccess(awake={"m": UPSTREAM}))
    answer: bytes = ANSWER
    client_side: Wire = field(init=False)
    client: ClientConnection = field(init=False)
    engine_side: Wire = field(init=False)
    engine: EngineConnection = field(init=False)
    _answered_bytes: int = 0

    def __post_init__(self) -> None:
        self.loop.reset()
        self.loop.run(self._connect)
        self.loop.settle()

    def _connect(self) -> None:
        gateway = Gateway(self.access, GatewayOptions(max_body_bytes=MAX_BODY_BYTES), self.loop.create_task)
        self.engine = EngineConnection(gateway._pools.of(UPSTREAM))
        self.engine_side = Wire(self.loop, self.engine)
        self.engine.connection_made(self.engine_side)
        self.engine.become_idle()
        self.client = gateway._accept()
        self.client_side = Wire(self.loop, self.client)
        self.client.connection_made(self.client_side)

    def receive(self, pieces: Iterable[bytes]) -> None:
        """Give llmux what the client sends; the engine answers whatever it is asked in between."""
        for piece in pieces:
            if not self._wait_for(self.client_side):
                return
            if piece and not self.client_side.closed:
                self.loop.run(self.client.data_received, piece)
            self._let_engine_answer()

    def receive_answer(self, pieces: Iterable[bytes]) -> None:
        """Give llmux what the engine sends."""
        for piece in pieces:
            if not self._wait_for(self.engine_side):
                return
            if piece and not self.engine_side.closed:
                self.loop.run(self.engine.data_received, piece)
        self.loop.settle()

    def lose_engine(self) -> None:
        """The engine closes its connection."""
        self.engine_side.close()
        self.loop.settle()

    def finish(self) -> None:
        """The client leaves; raises Fault where something of its requests is left."""
        self.client_side.close()
        self.loop.settle()
        if self.access.problems:
            raise Fault("lease", self.access.problems[0])
        if self.access.leases:
            raise Fault("a lease was neither ended nor given back")

    @property
    def asked(self) -> list[str]:
        """The models of the requests that were let through, in order."""
        return [one.request.model for one in self.access.asked]

    def _wait_for(self, side: Wire) -> bool:
        self.loop.settle()
        return side.reads

    def _let_engine_answer(self) -> None:
        self.loop.settle()
        while self.answer and not self.engine_side.closed:
            written = sum(map(len, self.engine_side.pieces))
            if written == self._answered_bytes:
                return
            self._answered_bytes = written
            self.loop.run(self.engine.data_received, self.answer)
            self.loop.settle()


def reads(data: bytes, cuts: Sequence[int] = ()) -> list[bytes]:
    """The data in pieces: cut at these offsets, and nowhere longer than one read."""
    ends = sorted({*(cut for cut in cuts if 0 < cut < len(data)), *range(READ_BYTES, len(data), READ_BYTES), len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def without_prefix(engine: bytes) -> bytes:
    """What an engine has received, without what tells the identifiers of one process from those of another."""
    return _PREFIX.sub(b"req-", engine)


def statuses_of(client_side: Wire) -> tuple[bytes, ...]:
    """The statuses of the answers that a client got; raises Fault where llmux had to answer for a fault of its own.

    An answer's head begins a write: what looks like a status line elsewhere is in a body. ``100 Continue`` does not
    count, because it is sent only to a client that still waits with its body.
    """
    if any(b'"internal_error"' in piece for piece in client_side.pieces):
        raise Fault("internal_error")
    begun = [piece for piece in client_side.pieces if piece.startswith(b"HTTP/1.1 ")]
    return tuple(piece[9:12] for piece in begun if piece != CONTINUE)
