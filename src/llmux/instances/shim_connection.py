"""The socket to one shim: commands out, events in, and the shim's own exit."""

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

from llmux import os_errors
from llmux.errors import SpawnFailed
from llmux.instances.sessions import find_living, kill_session, kill_session_once

SHIM = Path(__file__).with_name("shim")
MESSAGE_BYTES_MAX = 4_194_304
"""A shim sends at most 64 KiB of output in one message; a longer message is a fault, and ends the connection."""


class Started(msgspec.Struct, frozen=True, tag_field="event", tag="started"):
    """The engine runs; ``pid`` is also the id of its group and session.

    ``pipes`` are the inodes of its stdout and stderr, by which criu recognises them in an image.
    """

    pid: int
    pipes: tuple[int, int]


class SpawnRefused(msgspec.Struct, frozen=True, tag_field="event", tag="spawn_failed"):
    """The engine could not be started."""

    reason: str


class Output(msgspec.Struct, frozen=True, tag_field="event", tag="output"):
    """Lines that the engine printed, unchanged."""

    stream: str
    lines: list[str]


class Dropped(msgspec.Struct, frozen=True, tag_field="event", tag="dropped"):
    """The number of lines that were lost because the engine prints faster than llmux reads."""

    lines: int


class Exited(msgspec.Struct, frozen=True, tag_field="event", tag="exited"):
    """The engine's root has ended, with this exit code or negative signal number."""

    status: int


class Gone(msgspec.Struct, frozen=True, tag_field="event", tag="gone"):
    """No process of the engine's tree is left, and its temporary directory has been removed."""


class Refused(msgspec.Struct, frozen=True, tag_field="event", tag="refused"):
    """The shim does not know a command or could not carry it out."""

    reason: str


class Failed(msgspec.Struct, frozen=True, tag_field="event", tag="failed"):
    """The shim failed; it kills the engine and exits."""

    reason: str


class Dumped(msgspec.Struct, frozen=True, tag_field="event", tag="dumped"):
    """The engine is in its image; of its tree, only the temporary directory is left."""


class DumpRefused(msgspec.Struct, frozen=True, tag_field="event", tag="dump_failed"):
    """criu failed, or was killed for ``reason``; the engine runs on unless its exit was reported before."""

    status: int | None
    reason: str


class RestoreRefused(msgspec.Struct, frozen=True, tag_field="event", tag="restore_failed"):
    """criu failed, or was killed for ``reason``; nothing of the tree is left."""

    status: int | None
    reason: str


class Pong(msgspec.Struct, frozen=True, tag_field="event", tag="pong"):
    """The answer to ``ping``: the shim's loop runs."""


class Stays(msgspec.Struct, frozen=True, tag_field="event", tag="stays"):
    """The engine will outlive the connection."""


class StopCommandEnded(msgspec.Struct, frozen=True, tag_field="event", tag="stop_command_ended"):
    """The stop command has been run, and will not be again: its exit status, why it was killed or not started."""

    status: int | None
    reason: str
    lines: list[str]


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
    | Pong
    | StopCommandEnded
)


class ShimConnection(asyncio.Protocol):
    """Starts a shim and exchanges messages with it.

    ``on_event`` is called for each of its events; ``on_end`` once, when the socket has ended and the shim has been
    reaped. Closing the connection makes the shim kill the engine's tree.
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
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=ours)
                connection._start_shim(theirs)
        except OSError as error:
            connection.close()
            raise SpawnFailed(f"its shim could not be started: {os_errors.describe(error)}") from error
        return connection

    @property
    def shim_pid(self) -> int | None:
        """The shim's process."""
        return None if self._shim is None else self._shim.pid

    @property
    def shim_status(self) -> int | None:
        """The shim's exit code or negative signal number; 0 if it has cleaned up, None while it lives."""
        return None if self._shim is None else self._shim.returncode

    def send(self, command: str, **facts: Any) -> None:
        """Send a command; does nothing once the connection has ended."""
        if self._transport is not None and not self._transport.is_closing():
            # Not msgspec: environments and paths may hold bytes that are not UTF-8 (lone surrogates).
            self._transport.write(json.dumps({"command": command, **facts}).encode() + b"\n")

    def close(self) -> None:
        """End the connection, upon which the shim kills its engine."""
        if self._transport is not None:
            self._transport.abort()

    def kill(self) -> None:
        """Kill a shim that hangs, with all that descends from it; ``on_end`` follows when they have ended."""
        if self._shim is not None and self._shim.returncode is None:
            kill_session_once(self._shim.pid)

    def find_living(self) -> list[int]:
        """The pids of the shim, unless it has ended, and of everything that descends from it."""
        if self._shim is None or self._shim.returncode is not None:
            return []
        return find_living(self._shim.pid)

    def leave(self) -> None:
        """End the connection to a shim whose engine stays; neither callback is called after this."""
        self._on_event, self._on_end = _ignore_event, _ignore_end
        self._stop_watching()
        if self._shim is not None:
            # Keeps subprocess from waiting for it: it becomes init's child when llmux exits.
            self._shim.returncode = 0
        self.close()

    def _start_shim(self, theirs: socket.socket) -> None:
        # Not with asyncio, whose child watcher would reap the shim before ``_on_shim_exit`` has cleaned up after it.
        self._shim = subprocess.Popen(
            (sys.executable, "-I", "-S", str(SHIM), str(theirs.fileno())),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(theirs.fileno(),),
        )
        self._shim_descriptor = os.pidfd_open(self._shim.pid)
        asyncio.get_running_loop().add_reader(self._shim_descriptor, self._on_shim_exit)

    def _stop_watching(self) -> None:
        if self._shim_descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._shim_descriptor)
            os.close(self._shim_descriptor)
            self._shim_descriptor = -1

    def _on_shim_exit(self) -> None:
        self._stop_watching()
        if self._shim is not None:
            # A shim that was killed leaves its criu behind. Before the shim is reaped, while its pid is still its own.
            kill_session(self._shim.pid, self._reap_shim)

    def _reap_shim(self) -> None:
        if self._shim is not None:
            self._shim.wait()
        self._finish()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *messages, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MESSAGE_BYTES_MAX:
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
    """For an engine that stays."""


def _ignore_end() -> None:
    """For an engine that stays."""
