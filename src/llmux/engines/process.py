"""One engine's processes, as llmux sees them: started, heard, ended, and really gone."""

import asyncio
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVarTuple, assert_never

from llmux.checkpoints.checkpointer import RestoreCommand
from llmux.engines.output import OutputTail, clean_line
from llmux.engines.sessions import find_living, kill_session
from llmux.engines.shim_connection import (
    Dropped,
    Dumped,
    DumpRefused,
    Exited,
    Failed,
    Gone,
    Output,
    Refused,
    RestoreRefused,
    ShimConnection,
    ShimEvent,
    SpawnRefused,
    Started,
    Stays,
)
from llmux.engines.waiting import outlast
from llmux.errors import DumpFailed, ProcessStuck, RestoreFailed, SpawnFailed, StayRefused

SPAWN_SECONDS = 30.0
SHIM_END_SECONDS = 2.0
STAY_SECONDS = 10.0
CRIU_END_SECONDS = 10.0
"""From the end of criu's time until the shim must have told what became of it."""
RESTORE_END_SECONDS = 30.0
"""What a killed restore gets to give back the memory that it has filled."""
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
    with all that is in it when the last of its processes is gone. ``checkpointable``: it can make no io_uring, which
    criu could not dump.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    working_directory: Path | None = None
    temporary_directory: Path | None = None
    checkpointable: bool = False


class EngineProcess:
    """An engine's tree of processes under a shim of its own; made by ``spawn`` or ``restore``."""

    def __init__(self, temporary_directory: Path | None, on_line: LineReceiver, on_exit: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 0
        """The root's, and the number of its group and session."""
        self.pipes = (0, 0)
        """The inodes of its stdout and stderr."""
        self.temporary_directory = temporary_directory
        self._on_line = on_line
        self._on_exit = on_exit
        self._tail = OutputTail()
        self._connection: ShimConnection | None = None
        self._started: asyncio.Future[str | None] = loop.create_future()
        """Why the engine could not be started, or None."""
        self._exited: asyncio.Future[int] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._tree_gone = False
        self._restored_pid = 0
        self._dumping: asyncio.Future[str | None] = loop.create_future()
        """Why the engine could not be dumped, or None."""
        self._staying: asyncio.Future[None] = loop.create_future()

    @classmethod
    async def spawn(cls, command: LaunchCommand, *, on_line: LineReceiver, on_exit: Callable[[int], None]) -> Self:
        """Start the engine; raises SpawnFailed.

        ``on_exit`` is called exactly once, with the root's exit code or its signal's number, negative; both callbacks
        may be called before this returns. A cancelled ``spawn`` leaves no process behind and calls no ``on_exit``.
        """
        process = cls(command.temporary_directory, on_line, on_exit)
        reason = await process._begin("start", _start_facts(command), SPAWN_SECONDS)
        if reason is not None:
            raise SpawnFailed(reason)
        return process

    @classmethod
    async def restore(cls, command: RestoreCommand, *, on_line: LineReceiver, on_exit: Callable[[int], None]) -> Self:
        """Have criu make the engine anew, as if it had been spawned; raises RestoreFailed, SpawnFailed.

        The numbers of its processes must be free. After a failure or a cancellation neither a process is left nor the
        temporary directory.
        """
        process = cls(command.temporary_directory, on_line, on_exit)
        facts = {
            "argv": list(command.argv),
            "timeout_seconds": command.timeout_seconds,
            "pid": command.pid,
            "pipes": list(command.pipes),
            "temporary_directory": None if command.temporary_directory is None else str(command.temporary_directory),
        }
        # Unless its shim is killed as well: then what it has half made is found by this number.
        process._restored_pid = command.pid
        reason = await process._begin("restore", facts, command.timeout_seconds + CRIU_END_SECONDS)
        if reason is not None:
            raise RestoreFailed(reason)
        return process

    async def _begin(self, command: str, facts: dict[str, object], limit_seconds: float) -> str | None:
        """Give a fresh shim the command; the reason where there is no engine after it, and then nothing is left."""
        self._connection = connection = await ShimConnection.open(self._event, self._shim_ended)
        connection.send(command, **facts)
        try:
            await asyncio.wait((self._started,), timeout=limit_seconds)
        except asyncio.CancelledError:
            self._abandon()
            if self._restored_pid:
                await outlast(self._gone)
            raise
        reason = self._started.result() if self._started.done() else f"no answer within {limit_seconds:.0f} s"
        if reason is not None:
            self._abandon()
            await asyncio.wait((self._gone,), timeout=RESTORE_END_SECONDS if self._restored_pid else SHIM_END_SECONDS)
        return reason

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

    async def dump(self, argv: Sequence[str], timeout_seconds: float) -> None:
        """Have criu (its whole command line is given) put the engine into an image; raises DumpFailed.

        On success the engine's processes are gone and ``on_exit`` is not called; its temporary directory is there until
        ``release``. A cancelled dump is broken off, and what became of the engine is known before this returns: it
        either runs on or ``is_dumped``.
        """
        if self._exited.done() or self._gone.done():
            raise DumpFailed("it has ended already", engine_runs=False)
        self._dumping = asyncio.get_running_loop().create_future()
        self._send("dump", argv=list(argv), timeout_seconds=timeout_seconds)
        limit_seconds = timeout_seconds + CRIU_END_SECONDS
        try:
            await asyncio.wait((self._dumping,), timeout=limit_seconds)
        except asyncio.CancelledError:
            self._send("break_off")
            await outlast(self._dumping, CRIU_END_SECONDS)
            raise
        if not self._dumping.done():
            self.kill()
            raise DumpFailed(f"no answer within {limit_seconds:.0f} s", engine_runs=False)
        reason = self._dumping.result()
        if reason is not None:
            raise DumpFailed(reason, engine_runs=self.exit_status is None)

    @property
    def is_dumped(self) -> bool:
        """Whether the engine is in an image instead of running."""
        return self._dumping.done() and self._dumping.result() is None

    async def release(self) -> None:
        """After a dump: let the shim end, and the temporary directory with it."""
        if self._connection is not None:
            self._connection.close()
        await outlast(self._gone)

    async def stay(self, limit_seconds: float = STAY_SECONDS) -> None:
        """Let the engine outlive this process: nothing is heard of it any more, and its shim stops it on SIGTERM.

        Raises StayRefused if the shim does not agree in time, or the engine has ended; then it is ours as before.
        """
        self._send("stay")
        await asyncio.wait((self._staying, self._exited), timeout=limit_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not self._staying.done() or self._exited.done():
            raise StayRefused("it has ended" if self._exited.done() else f"no answer within {limit_seconds:g} s")
        self._on_exit = _ignore_exit
        if self._connection is not None:
            self._connection.leave()

    def _send(self, command: str, **facts: Any) -> None:
        if self._connection is not None:
            self._connection.send(command, **facts)

    def _abandon(self) -> None:
        self._on_exit = _ignore_exit
        if self._connection is not None:
            self._connection.close()

    def _event(self, event: ShimEvent) -> None:
        match event:
            case Started(pid, pipes):
                self.pid = pid
                self.pipes = pipes
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
            case Dumped():
                self._tree_gone = True
                self._set_dumped(None)
            case DumpRefused(status, reason):
                self._set_dumped(describe_criu_end(status, reason))
            case RestoreRefused(status, reason):
                self._restored_pid = 0
                self._set_started(describe_criu_end(status, reason))
            case Stays():
                if not self._staying.done():
                    self._staying.set_result(None)
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

    def _set_dumped(self, reason: str | None) -> None:
        if not self._dumping.done():
            self._dumping.set_result(reason)

    def _set_exited(self, status: int) -> None:
        if not self._exited.done():
            self._exited.set_result(status)
            _call_safely(self._on_exit, status)

    def _shim_ended(self) -> None:
        self._set_started("its shim was killed before it had started the engine")
        session = self.pid or self._restored_pid
        if session == 0 or (self._tree_gone and not self.is_dumped):
            self._gone.set_result(None)
        elif self._tree_gone or (self._connection is not None and self._connection.shim_status == 0):
            self._swept()
        else:
            kill_session(session, self._swept)

    def _swept(self) -> None:
        if self.temporary_directory is not None:
            shutil.rmtree(self.temporary_directory, ignore_errors=True)
        if not self.is_dumped:
            self._set_exited(LOST)
        self._set_dumped("its shim was killed")
        self._gone.set_result(None)


def describe_criu_end(status: int | None, reason: str) -> str:
    """How a criu that failed has ended; its log says more, unless it was killed."""
    if reason:
        return f"criu was killed: {reason}" if status is not None else reason
    return f"criu ended with {describe_exit(status or 0)}"


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
        "block_io_uring": command.checkpointable,
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
