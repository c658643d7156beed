"""Connections to the control plane that come before its HTTP server is there."""

import asyncio
from enum import Enum, auto
from typing import cast


class Port(Enum):
    """The ports on which the control plane answers, each by an application of its own."""

    MAIN = auto()
    """The gateway's, which hands connections over."""
    ADMIN = auto()
    METRICS = auto()


class EarlyConnection(asyncio.Protocol):
    """Holds a connection, and reads no more from it, until it is given the protocol that answers.

    From then on it passes everything on. It cannot make the other the transport's protocol: on the main port the
    gateway's ``LastRequest`` stands before this one, and drops what comes after the request.
    """

    def __init__(self, port: Port) -> None:
        self.port = port
        self._transport: asyncio.Transport | None = None
        self._received = b""
        """What the gateway had read before it handed the connection over."""
        self._is_full = False
        self._answering: asyncio.Protocol | None = None

    def begin(self, answering: asyncio.Protocol) -> None:
        """From now on ``answering`` has the connection, if it still exists."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._answering = answering
        answering.connection_made(transport)
        if self._is_full:
            answering.pause_writing()
        if self._received:
            answering.data_received(self._received)
        transport.resume_reading()

    def abort(self) -> None:
        """Nobody is going to answer."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._answering is None:
            self._received += data
        else:
            self._answering.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._answering is None else self._answering.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answering is not None:
            self._answering.connection_lost(exc)

    def pause_writing(self) -> None:
        self._is_full = True
        if self._answering is not None:
            self._answering.pause_writing()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._answering is not None:
            self._answering.resume_writing()
