"""Handing one request to the control plane's HTTP server, as the last one of its connection."""

import asyncio

_REPLACED = (b"connection", b"proxy-connection", b"transfer-encoding", b"content-length", b"expect", b"upgrade")


def as_last_request(head: bytes, body: bytes) -> bytes:
    """The request as it is handed over: whole, framed by its length, and with ``Connection: close``.

    Kept open, the connection could bring a request for a model to a server that has none.
    """
    lines = head[:-4].split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].lower() not in _REPLACED]
    return b"\r\n".join([*kept, b"Connection: close", b"Content-Length: %d" % len(body), b"", body])


class LastRequest(asyncio.Protocol):
    """Stands before the protocol that answers the request, and drops whatever the client sends after it."""

    def __init__(self, answering: asyncio.Protocol) -> None:
        self._answering = answering

    def eof_received(self) -> bool | None:
        return self._answering.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._answering.connection_lost(exc)

    def pause_writing(self) -> None:
        self._answering.pause_writing()

    def resume_writing(self) -> None:
        self._answering.resume_writing()


def hand_over(
    transport: asyncio.Transport, answering: asyncio.Protocol, head: bytes, body: bytes, *, is_full: bool
) -> None:
    """Give the connection to ``answering``, which gets this request. ``is_full``: the client is slow to read."""
    transport.set_protocol(LastRequest(answering))
    answering.connection_made(transport)
    if is_full:
        answering.pause_writing()
    answering.data_received(as_last_request(head, body))
