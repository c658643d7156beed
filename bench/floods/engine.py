"""The engine behind the proxies: ``engine.py --port N``, other arguments ignored. One thread, on uvloop.

A path with ``stream`` is answered by an event every SPACING_SECONDS, which carries the time of its sending, until the
client leaves; one with ``interim`` by ``100 Continue`` INTERIM times before the answer; any other at once by two bytes.
"""

import argparse
import asyncio
import re
import time
from typing import cast

import uvloop

SPACING_SECONDS = 0.1
SLOTS = 20
"""Streams are spread over so many moments of the spacing."""
EVENT_BYTES = 250
INTERIM = 100_000
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_FLOOD = b"HTTP/1.1 100 Continue\r\n\r\n" * INTERIM + _PLAIN


class Streams:
    """All streams, each in the slot in which it gets its events."""

    def __init__(self) -> None:
        self._slots: list[set[asyncio.Transport]] = [set() for _ in range(SLOTS)]
        self._next = 0

    def add(self, transport: asyncio.Transport) -> None:
        self._slots[self._next % SLOTS].add(transport)
        self._next += 1

    def remove(self, transport: asyncio.Transport) -> None:
        for slot in self._slots:
            slot.discard(transport)

    async def send(self) -> None:
        """Send events for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            for slot in self._slots:
                due += SPACING_SECONDS / SLOTS
                await asyncio.sleep(max(0.0, due - loop.time()))
                for transport in slot:
                    event = b"data: %d " % time.monotonic_ns()
                    transport.write(b"%x\r\n%b\r\n" % (EVENT_BYTES, event.ljust(EVENT_BYTES - 2, b".") + b"\n\n"))


class Connection(asyncio.Protocol):
    """One connection: heads, and bodies with a length, which are thrown away."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._path = b""
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._streams.remove(self._transport)

    def data_received(self, data: bytes) -> None:
        while data:
            if self._missing:
                taken = min(self._missing, len(data))
                self._missing -= taken
                data = data[taken:]
            else:
                head, found, rest = (self._head + data).partition(b"\r\n\r\n")
                if not found:
                    self._head = head
                    return
                length = _LENGTH.search(head)
                self._head, self._path, data = b"", head.split(b" ", 2)[1], rest
                self._missing = int(length[1]) if length else 0
                if self._missing:
                    continue
            if not self._missing:
                self._answer()

    def _answer(self) -> None:
        transport = self._transport
        assert transport is not None
        if b"stream" in self._path:
            transport.write(_STREAM)
            self._streams.add(transport)
        else:
            transport.write(_FLOOD if b"interim" in self._path else _PLAIN)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_known_args()[0].port
    streams = Streams()
    await asyncio.get_running_loop().create_server(lambda: Connection(streams), "127.0.0.1", port, backlog=1024)
    await streams.send()


if __name__ == "__main__":
    uvloop.run(main())
