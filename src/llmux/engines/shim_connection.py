"""The socket to one shim, and the shim's own end."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

import msgspec

from llmux.engines.sessions import kill_session
from llmux.errors import SpawnFailed

SHIM = Path(__file__).with_name("shim")
MESSAGE_BYTES = 4_194_304


class Started(msgspec.Struct, frozen=True, tag_field="event", tag="started"):
    """The engine runs; ``pid`` is also the number of its group and session.

    ``pipes`` are the inodes of its stdout and stderr, by which criu knows them again.
    """

    pid: int
    pipes: tuple[int, int]


class SpawnRefused(msgspec.Struct, frozen=True, tag_field="event", tag="spawn_failed"):
    """The engine could not be started."""

    reason: str


class Output(msgspec.Struct, frozen=True, tag_field="event", tag="output"):
    """Lines that the engine printed, as they are."""

    stream: str
    lines: list[str]


class Dropped(msgspec.Struct, frozen=True, tag_field="event", tag="dropped"):
    """So many lines were lost because the engine prints faster than llmux reads."""

    lines: int


class Exited(msgspec.Struct, frozen=True, tag_field="event", tag="exited"):
    """The engine's root has ended: exit code, or the signal's number, negative."""

    status: int


class Gone(msgspec.Struct, frozen=True, tag_field="event", tag="gone"):
    """No process of the engine's tree is left, and its temporary directory is removed."""


class Refused(msgspec.Struct, frozen=True, tag_field="event", tag="refused"):
    """The shim did not understand or could not perform a command."""

    reason: str


class Failed(msgspec.Struct, frozen=True, tag_field="event", tag="failed"):
    """The shim has a fault of its own; it kills the engine and leaves."""

    reason: str


class Dumped(msgspec.Struct, frozen=True, tag_field="event", tag="dumped"):
    """The engine is in its image, and nothing of its tree is left but the temporary directory."""


class DumpRefused(msgspec.Struct, frozen=True, tag_field="event", tag="dump_failed"):
    """criu failed, or was killed for the reason given; the engine runs on, unless its end was told before."""

    status: int | None
    reason: str


class RestoreRefused(msgspec.Struct, frozen=True, tag_field="event", tag="restore_failed"):
    """criu failed, or was killed for the reason given; nothing of the tree is left."""

    status: int | None
    reason: str


class Stays(msgspec.Struct, frozen=True, tag_field="event", tag="stays"):
    """The engine will outlive the connection."""


ShimEvent = (
    Started
    | SpawnRefused
    | Output
    | Dropped
    | Exited
    | Gone
    | Refused
    | Failed
    | Dumped
    | DumpRefused
    | RestoreRefused
    | Stays
)


class ShimConnection(asyncio.Protocol):
    """Starts a shim and talks to it.

    ``on_event`` is called for each of its events; ``on_end`` once, when the socket has ended and the shim's process
    has been reaped. Closing the connection makes the shim kill the engine's tree.
    """

    def __init__(self, on_event: Callable[[ShimEvent], None], on_end: Callable[[], None]) -> None:
        self._on_event = on_event
        self._on_end = on_end
        self._decoder = msgspec.json.Decoder(ShimEvent)
        self._partial = b""
        self._transport: asyncio.Transport | None = None
        self._shim: subprocess.Popen[bytes] | None = None
        self._shim_descriptor = -1
        self._disconnected = False

    @classmethod
    async def open(cls, on_event: Callable[[ShimEvent], None], on_end: Callable[[], None]) -> Self:
        """Start a shim; raises SpawnFailed."""
        connection = cls(on_event, on_end)
        ours, theirs = socket.socketpair()
        with theirs:
            await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=ours)
            try:
                connection._start_shim(theirs)
            except OSError as error:
                connection.close()
                raise SpawnFailed(f"its shim could not be started: {error}") from error
        return connection

    @property
    def shim_pid(self) -> int | None:
        """The shim's own process."""
        return None if self._shim is None else self._shim.pid

    @property
    def shim_status(self) -> int | None:
        """The shim's exit code or its signal's number, negative; 0 where it has cleaned up, None while it lives."""
        return None if self._shim is None else self._shim.returncode

    def send(self, command: str, **facts: Any) -> None:
        """Give the shim a command; does nothing once the connection has ended."""
        if self._transport is not None and not self._transport.is_closing():
            # Not msgspec: environments and paths may hold bytes that are not UTF-8 (lone surrogates).
            self._transport.write(json.dumps({"command": command, **facts}).encode() + b"\n")

    def close(self) -> None:
        """End the connection, and by it whatever the shim still runs."""
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """End the connection with a shim that stays; neither callback is called after this."""
        self._on_event, self._on_end = _ignore_event, _ignore_end
        self._stop_watching()
        if self._shim is not None:
            # Not ours to wait for any more: it is init's child as soon as we have ended.
            self._shim.returncode = 0
        self.close()

    def _start_shim(self, theirs: socket.socket) -> None:
        # Not asyncio's subprocesses: their child watchers reap by their own rules.
        self._shim = subprocess.Popen(
            (sys.executable, "-I", "-S", str(SHIM), str(theirs.fileno())),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(theirs.fileno(),),
        )
        self._shim_descriptor = os.pidfd_open(self._shim.pid)
        asyncio.get_running_loop().add_reader(self._shim_descriptor, self._shim_ended)

    def _stop_watching(self) -> None:
        if self._shim_descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._shim_descriptor)
            os.close(self._shim_descriptor)
            self._shim_descriptor = -1

    def _shim_ended(self) -> None:
        self._stop_watching()
        if self._shim is not None:
            # A shim that was killed leaves its criu. Before the shim is reaped: until then nobody else has its number.
            kill_session(self._shim.pid, self._reap_shim)

    def _reap_shim(self) -> None:
        if self._shim is not None:
            self._shim.wait()
        self._finish()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *messages, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MESSAGE_BYTES:
            self.close()
            return
        for message in messages:
            self._on_event(self._decoder.decode(message))

    def connection_lost(self, exc: Exception | None) -> None:
        self._disconnected = True
        self._finish()

    def _finish(self) -> None:
        if self._disconnected and self._shim is not None and self._shim.returncode is not None:
            self._on_end()


def _ignore_event(event: ShimEvent) -> None:
    """Of an engine that stays nothing more is to be heard."""


def _ignore_end() -> None:
    """As ``_ignore_event``."""
