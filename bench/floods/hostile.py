"""One hostile client: ``hostile.py KIND PORT [--size SHARE] [--seconds S]``. One thread, prebuilt buffers, cheap.

With ``--seconds`` it repeats its flood so long, else it runs it once. Prints how often, and the bytes of one body.
"""

import argparse
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

READ_BYTES = 1 << 20
GIVE_UP_SECONDS = 120.0
BOUNDARY = b"boundary"
_POST = b"POST /v1/%b HTTP/1.1\r\nHost: localhost\r\nmodel-override: m\r\nContent-Type: %b\r\n%b\r\n\r\n"
_CHUNKED = b"Transfer-Encoding: chunked"
_JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Flood:
    """What one connection sends, and how much of it is a body as its receiver sees it."""

    data: bytes
    body_bytes: int
    answers: int
    """How many answers end it; a closed connection ends it too."""


def _chunked(payload_bytes: int, chunk_bytes: int) -> Flood:
    count = payload_bytes // chunk_bytes
    body = (b"%x\r\n%b\r\n" % (chunk_bytes, b"1" * chunk_bytes)) * count + b"0\r\n\r\n"
    return Flood(_POST % (b"completions", _JSON, _CHUNKED) + body, payload_bytes, 1)


def _multipart(file_bytes: int) -> Flood:
    part = b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    # Line ends make a parser stop and look for the boundary.
    file = (b"\r\n--boundar" * (file_bytes // 11 + 1))[:file_bytes]
    body = part % (BOUNDARY, b"file", b'; filename="a"', file) + part % (BOUNDARY, b"model", b"", b"m")
    body += b"--%b--\r\n" % BOUNDARY
    head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: multipart/form-data; boundary=%b\r\n"
    return Flood(head % BOUNDARY + b"Content-Length: %d\r\n\r\n" % len(body) + body, len(body), 1)


def _pipelined(count: int, fields: bytes = b"") -> Flood:
    return Flood((b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n") * count, 0, count)


def _interim() -> Flood:
    return Flood(_POST % (b"interim", _JSON, b"Content-Length: 13") + b'{"model":"m"}', 13, 1)


FLOODS: dict[str, Callable[[float], Flood]] = {
    "1-byte chunks": lambda size: _chunked(int(1_000_000 * size), 1),
    "2-byte chunks": lambda size: _chunked(int(20_000_000 * size), 2),
    "100-byte chunks": lambda size: _chunked(int(20_000_000 * size), 100),
    "pipelined requests": lambda size: _pipelined(int(100_000 * size)),
    "5,000 headers": lambda size: _pipelined(int(500 * size), b"a:\r\n" * 5_000),
    "100 Continue": lambda _: _interim(),
    "multipart": lambda size: _multipart(int(40_000_000 * size)),
}


def run(flood: Flood, port: int) -> None:
    """Send it on a connection of its own and read what comes back, until all is answered or the other side closes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setblocking(False)
        unsent = memoryview(flood.data)
        answers = 0
        tail = b""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while answers < flood.answers and time.monotonic() < deadline:
            readable, writable, _ = select.select([connection], [connection] if unsent else [], [], 1.0)
            try:
                if readable:
                    received = connection.recv(READ_BYTES)
                    if not received:
                        return
                    received = tail + received
                    answers += received.count(b"HTTP/1.1 ") - received.count(b"HTTP/1.1 100 ")
                    tail = received[-12:] if b"HTTP/1.1 " not in received[-12:] else b""
                if writable:
                    unsent = unsent[connection.send(unsent) :]
            except BlockingIOError:
                continue
            except ConnectionError:
                return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=list(FLOODS))
    parser.add_argument("port", type=int)
    parser.add_argument("--size", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    flood = FLOODS[arguments.kind](arguments.size)
    count, end = 0, time.monotonic() + arguments.seconds
    while not count or time.monotonic() < end:
        try:
            run(flood, arguments.port)
        except ConnectionError:
            time.sleep(0.1)
        count += 1
    print(count, flood.body_bytes)


if __name__ == "__main__":
    main()
