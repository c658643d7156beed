"""One engine's processes, as llmux sees them: started, heard, ended, and really gone."""

import asyncio
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVarTuple, assert_never

from llmux.engines.output import OutputTail, clean_line
from llmux.engines.sessions import find_living, kill_session
from llmux.engines.shim_connection import (
    Dropped,
    Exited,
    Failed,
    Gone,
    Output,
    Refused,
    ShimConnection,
    ShimEvent,
    SpawnRefused,
    Started,
)
from llmux.errors import ProcessStuck, SpawnFailed

SPAWN_SECONDS = 30.0
SHIM_END_SECONDS = 2.0
LEFTOVER_SECONDS = 5.0
"""vLLM's worker lives up to 3.4 s longer than its root."""
LOST = -signal.SIGKILL
"""The status of an engine whose shim was killed, and which was killed for that."""

Arguments = TypeVarTuple("Arguments")
LineReceiver = Callable[[str, str], None]
"""Called with the stream (``stdout``, ``stderr``) and a line without escape sequences."""


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """How to start an engine.

    The environment is the whole one. ``temporary_directory`` is made for the engine, is its TMPDIR, and is removed
    with all that is in it when the last of its processes is gone.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: Path | None = None
    temporary_directory: Path | None = None


class EngineProcess:
    """An engine's tree of processes under a shim of its own; made by ``spawn``."""

    def __init__(self, command: LaunchCommand, on_line: LineReceiver, on_exit: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 0
        """The root's, and the number of its group and session."""
        self._command = command
        self._on_line = on_line
        self._on_exit = on_exit
        self._tail = OutputTail()
        self._connection: ShimConnection | None = None
        self._started: asyncio.Future[str | None] = loop.create_future()
        """Why the engine could not be started, or None."""
        self._exited: asyncio.Future[int] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._tree_gone = False

    @classmethod
    async def spawn(cls, command: LaunchCommand, *, on_line: LineReceiver, on_exit: Callable[[int], None]) -> Self:
        """Start the engine; raises SpawnFailed.

        ``on_exit`` is called exactly once, with the root's exit code or its signal's number, negative; both callbacks
        may be called before this returns. A cancelled ``spawn`` leaves no process behind and calls no ``on_exit``.
        """
        process = cls(command, on_line, on_exit)
        connection = await ShimConnection.open(process._event, process._shim_ended)
        process._connection = connection
        connection.send("start", **_start_facts(command))
        try:
            await asyncio.wait((process._started,), timeout=SPAWN_SECONDS)
        except asyncio.CancelledError:
            process._abandon()
            raise
        reason = process._started.result() if process._started.done() else f"no answer within {SPAWN_SECONDS:.0f} s"
        if reason is not None:
            process._abandon()
            await asyncio.wait((process._gone,), timeout=SHIM_END_SECONDS)
            raise SpawnFailed(reason)
        return process

    @property
    def exit_status(self) -> int | None:
        """The root's exit code, or its signal's number, negative; None while it runs."""
        return self._exited.result() if self._exited.done() else None

    @property
    def is_gone(self) -> bool:
        """Whether no process of the tree is left."""
        return self._gone.done()

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines of output that are not blank."""
        return self._tail.lines

    @property
    def shim_pid(self) -> int | None:
        """The shim's own process."""
        return None if self._connection is None else self._connection.shim_pid

    async def wait_exited(self) -> int:
        """Wait for the root's end; descendants may live on and hold memory."""
        return await asyncio.shield(self._exited)

    async def wait_gone(self) -> None:
        """Wait until no process of the tree is left and its temporary directory is removed."""
        await asyncio.shield(self._gone)

    def signal(self, number: int) -> None:
        """Signal the engine's process group."""
        self._send("signal", signal=int(number))

    def kill(self) -> None:
        """SIGKILL the whole tree, also what left its session, again and again until it is gone."""
        self._send("kill")

    async def stop(
        self, terminate_seconds: float, kill_seconds: float, *, leftover_seconds: float = LEFTOVER_SECONDS
    ) -> None:
        """SIGTERM the root, after ``terminate_seconds`` SIGKILL the tree; returns when all of it is gone.

        What is left when the root has ended gets a SIGTERM too, and then at most ``leftover_seconds``. Raises
        ProcessStuck if something is left ``kill_seconds`` after the SIGKILL. Cancelled, it leaves the shim to go on
        stopping the engine.
        """
        self._send("stop", terminate_seconds=terminate_seconds, leftover_seconds=leftover_seconds)
        waited_seconds = terminate_seconds + kill_seconds
        await asyncio.wait((self._gone,), timeout=waited_seconds)
        if not self._gone.done():
            raise ProcessStuck(find_living(self.pid), waited_seconds)

    def _send(self, command: str, **facts: float) -> None:
        if self._connection is not None:
            self._connection.send(command, **facts)

    def _abandon(self) -> None:
        self._on_exit = _ignore_exit
        if self._connection is not None:
            self._connection.close()

    def _event(self, event: ShimEvent) -> None:
        match event:
            case Started(pid):
                self.pid = pid
                self._set_started(None)
            case SpawnRefused(reason) | Failed(reason):
                self._set_started(reason)
                self._hear("shim", reason)
            case Output(stream, lines):
                for line in lines:
                    self._hear(stream, clean_line(line))
            case Dropped(lines):
                self._hear("shim", f"{lines} lines of output were dropped: the engine prints faster than they are read")
            case Refused(reason):
                self._hear("shim", reason)
            case Exited(status):
                self._set_exited(status)
            case Gone():
                self._tree_gone = True
                if self._connection is not None:
                    self._connection.close()
            case _:
                assert_never(event)

    def _hear(self, stream: str, line: str) -> None:
        self._tail.add(line)
        _call_safely(self._on_line, stream, line)

    def _set_started(self, reason: str | None) -> None:
        if not self._started.done():
            self._started.set_result(reason)

    def _set_exited(self, status: int) -> None:
        if not self._exited.done():
            self._exited.set_result(status)
            _call_safely(self._on_exit, status)

    def _shim_ended(self) -> None:
        self._set_started("its shim was killed before it had started the engine")
        if self._tree_gone or self.pid == 0:
            self._gone.set_result(None)
        else:
            kill_session(self.pid, self._swept)

    def _swept(self) -> None:
        if self._command.temporary_directory is not None:
            shutil.rmtree(self._command.temporary_directory, ignore_errors=True)
        self._set_exited(LOST)
        self._gone.set_result(None)


def describe_exit(status: int) -> str:
    """An exit status in words: ``exit code 1``, ``killed by SIGKILL``."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _start_facts(command: LaunchCommand) -> dict[str, object]:
    environment = dict(command.environment)
    temporary = command.temporary_directory
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    return {
        "argv": list(command.argv),
        "env": environment,
        "cwd": None if command.working_directory is None else str(command.working_directory),
        "temporary_directory": None if temporary is None else str(temporary),
    }


def _ignore_exit(status: int) -> None:
    """For an engine that nobody knows of."""


def _call_safely(receiver: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
    """A fault in a receiver is told to the loop; it may not cost the engine its life."""
    try:
        receiver(*arguments)
    except Exception as error:
        context = {"message": "a receiver of an engine's output or end failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
