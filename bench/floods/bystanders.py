"""Innocent clients beside a hostile one: streams whose events carry the time of their sending, and a prober."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

PROBE_SPACING_SECONDS = 0.005
HOSTILE_NICENESS = "19"


@dataclass(slots=True)
class Seen:
    """What the innocent clients have seen during one flood, in milliseconds."""

    health: list[float] = field(default_factory=list)
    chunks: list[float] = field(default_factory=list)
    lost: int = 0
    """Streams that broke off, and probes without an answer."""


class Streaming(asyncio.Protocol):
    """An innocent stream: how late each of its events is."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._leaving = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        body = b'{"model":"m","stream":true}'
        head = b"POST /v1/streaming HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        for piece in data.split(b"data: ")[1:]:
            stamp = piece.partition(b" ")[0]
            # A stamp cut by the end of a read is one of a great many.
            if len(stamp) == len(str(now)):
                self._seen.chunks.append((now - int(stamp)) / 1e6)

    def connection_lost(self, exc: Exception | None) -> None:
        self._seen.lost += not self._leaving

    def leave(self) -> None:
        self._leaving = True
        if self._transport is not None:
            self._transport.close()


async def probe(port: int, seen: Seen) -> None:
    """Ask for /health again and again, until cancelled; an answer that is still missing then counts as that late."""
    asked: float | None = None
    try:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    for _ in range(500):
                        asked = time.perf_counter()
                        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                        head = await reader.readuntil(b"\r\n\r\n")
                        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                        await reader.readexactly(int(length))
                        seen.health.append((time.perf_counter() - asked) * 1000)
                        asked = None
                        await asyncio.sleep(PROBE_SPACING_SECONDS)
                finally:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError):
                asked = None
                seen.lost += 1
                await asyncio.sleep(0.1)
    finally:
        if asked is not None:
            seen.health.append((time.perf_counter() - asked) * 1000)
