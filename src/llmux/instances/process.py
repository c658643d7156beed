"""One engine's tree of processes, under a shim: started or restored, stopped or dumped, and entirely gone."""

import asyncio
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVarTuple, assert_never

import structlog

from llmux.cancellation import wait_uncancelled
from llmux.errors import DumpFailed, LlmuxError, ProcessStuck, RestoreFailed, SpawnFailed
from llmux.instances.output import OutputTail, clean_line
from llmux.instances.sessions import find_living, kill_session
from llmux.instances.shim_connection import (
    Dropped,
    Dumped,
    DumpRefused,
    Exited,
    Failed,
    Gone,
    Output,
    Pong,
    Refused,
    RestoreRefused,
    ShimConnection,
    ShimEvent,
    SpawnRefused,
    Started,
    Stays,
    StopCommandEnded,
)

if TYPE_CHECKING:
    from llmux.checkpoints.checkpointer import RestoreCommand

log = structlog.get_logger("engine")

SPAWN_SECONDS = 30.0
"""For the shim to start the engine: milliseconds, unless the machine is overloaded."""
SHIM_ANSWER_SECONDS = 5.0
"""For a shim to answer a ping: milliseconds, unless the machine is overloaded. After that it is taken to hang."""
SHIM_END_SECONDS = 2.0
"""For a shim with nothing left to kill to exit."""
STAY_SECONDS = 10.0
CRIU_END_SECONDS = 10.0
"""From criu's own time limit to the shim's report on it."""
RESTORE_END_SECONDS = 30.0
"""For a restore that was killed to free the memory that it has filled."""
STOP_COMMAND_KILL_SECONDS = 5.0
"""From SIGKILL to the end of a stop command."""
LEFTOVER_SECONDS = 5.0
"""A worker outlives its engine's root by up to 3.4 s (measured)."""
SHIM_KILLED_STATUS = -signal.SIGKILL
"""The exit status reported for an engine that was killed because its shim had been killed."""

Arguments = TypeVarTuple("Arguments")
LineReceiver = Callable[[str, str], None]
"""Called with the stream (``stdout``, ``stderr`` or ``shim``) and a line without escape sequences."""


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """How to start an engine.

    ``environment`` is complete: nothing is inherited. ``temporary_directory`` becomes the engine's TMPDIR, and is
    removed with its contents after the last process. ``checkpointable``: block io_uring, which criu cannot dump.
    ``stop_argv``, if not empty, ends what does not end with the processes, and may take ``stop_seconds``.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    temporary_directory: Path | None = None
    checkpointable: bool = False
    stop_argv: tuple[str, ...] = ()
    stop_seconds: float = 0.0


class StayRefused(LlmuxError):
    """An engine could not be left running without llmux."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine could not be left running: {reason}")


class EngineProcess:
    """An engine's tree of processes under a shim of its own; created by ``spawn`` or ``restore``."""

    def __init__(
        self,
        temporary_directory: Path | None,
        on_line: LineReceiver,
        on_exit: Callable[[int], None],
        redact: Callable[[str], str],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 0
        """The root process, and the id of its group and session."""
        self.pipes = (0, 0)
        """Inodes of the engine's stdout and stderr."""
        self.temporary_directory = temporary_directory
        self._on_line = on_line
        self._on_exit = on_exit
        self._redact = redact
        self._tail = OutputTail()
        self._stop_command: LaunchCommand | None = None
        """What ends what the engine's processes leave behind, if it may still have to be run without the shim."""
        self._stop_seconds = 0.0
        self._connection: ShimConnection | None = None
        self._started: asyncio.Future[str | None] = loop.create_future()
        """Why the engine could not be started, or None."""
        self._exited: asyncio.Future[int] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._tree_gone = False
        self._restored_pid = 0
        self._dumping: asyncio.Future[str | None] = loop.create_future()
        """Why the engine could not be dumped, or None. Replaced for each dump."""
        self._staying: asyncio.Future[None] = loop.create_future()
        self._answered: asyncio.Future[None] = loop.create_future()
        """Done when the shim has answered the last ping. Replaced for each ping."""

    @classmethod
    async def spawn(
        cls,
        command: LaunchCommand,
        *,
        on_line: LineReceiver,
        on_exit: Callable[[int], None],
        redact: Callable[[str], str] = str,
    ) -> Self:
        """Start the engine; raises SpawnFailed. ``redact`` takes secrets out of each line that it prints.

        ``on_exit`` is called exactly once, with the root's exit code, or its signal's negative number; both callbacks
        may be called before this returns. A cancelled ``spawn`` leaves no process and never calls ``on_exit``.
        """
        process = cls(command.temporary_directory, on_line, on_exit, redact)
        if command.stop_argv:
            process._stop_command = LaunchCommand(command.stop_argv, command.environment)
            process._stop_seconds = command.stop_seconds
        reason = await process._begin("start", _start_facts(command), SPAWN_SECONDS)
        if reason is not None:
            raise SpawnFailed(reason)
        return process

    @classmethod
    async def restore(
        cls,
        command: "RestoreCommand",
        *,
        on_line: LineReceiver,
        on_exit: Callable[[int], None],
        redact: Callable[[str], str] = str,
    ) -> Self:
        """Let criu recreate the engine, as if it had been spawned; raises RestoreFailed, SpawnFailed.

        The pids in the image must be free. After a failure or cancellation, no process and no temporary directory is
        left.
        """
        process = cls(command.temporary_directory, on_line, on_exit, redact)
        facts = {
            "argv": list(command.argv),
            "timeout_seconds": command.timeout_seconds,
            "pid": command.pid,
            "pipes": list(command.pipes),
            "temporary_directory": None if command.temporary_directory is None else str(command.temporary_directory),
        }
        # Only if its shim is killed as well is this needed: by this id, the half-restored processes are found.
        process._restored_pid = command.pid
        reason = await process._begin("restore", facts, command.timeout_seconds + CRIU_END_SECONDS)
        if reason is not None:
            raise RestoreFailed(reason)
        return process

    async def _begin(self, command: str, facts: dict[str, object], limit_seconds: float) -> str | None:
        """Start a shim and send it the command; returns why there is no engine then, of which nothing is left."""
        self._connection = connection = await ShimConnection.open(self._on_event, self._on_shim_end)
        connection.send(command, **facts)
        try:
            await asyncio.wait((self._started,), timeout=limit_seconds)
        except asyncio.CancelledError:
            await self._abandon()
            raise
        reason = self._started.result() if self._started.done() else f"no answer within {limit_seconds:.0f} s"
        if reason is not None:
            await self._abandon()
        return reason

    async def _shim_answers(self) -> bool:
        """Whether the shim answers a ping. One that does not is killed, with its engine and all else that it has."""
        if self._gone.done():
            return True
        self._answered = asyncio.get_running_loop().create_future()
        self._send("ping")
        await asyncio.wait(
            (self._answered, self._gone), timeout=SHIM_ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if self._answered.done() or self._gone.done():
            return True
        self._kill_shim(f"it has not answered for {SHIM_ANSWER_SECONDS:g} s")
        return False

    def _kill_shim(self, reason: str) -> None:
        # What follows is as for a shim that was killed by somebody else: see ``_on_shim_end``.
        log.warning("killing a shim that hangs, with its engine", shim_pid=self.shim_pid, pid=self.pid, reason=reason)
        if self._connection is not None:
            self._connection.kill()

    @property
    def exit_status(self) -> int | None:
        """The root's exit code, or its signal's negative number; None while it runs."""
        return self._exited.result() if self._exited.done() else None

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines of output, blank ones left out."""
        return self._tail.lines

    @property
    def shim_pid(self) -> int | None:
        """The shim's process."""
        return None if self._connection is None else self._connection.shim_pid

    async def wait_exited(self) -> int:
        """Wait for the end of the root; its descendants may live on and hold memory."""
        return await asyncio.shield(self._exited)

    async def wait_gone(self) -> None:
        """Wait until no process of the tree is left and its temporary directory is removed."""
        await asyncio.shield(self._gone)

    def kill(self) -> None:
        """SIGKILL the whole tree, including what left its session, repeatedly until it is gone."""
        self._send("kill")

    async def stop(
        self, terminate_seconds: float, kill_seconds: float, *, leftover_seconds: float = LEFTOVER_SECONDS
    ) -> None:
        """SIGTERM the root, after ``terminate_seconds`` SIGKILL the tree; returns when all of it is gone.

        A stop command that has not been run yet comes first, or when the tree is gone if that is being killed already.
        When the root has ended, the rest gets a SIGTERM and at most ``leftover_seconds``. Raises ProcessStuck if a
        process is left ``kill_seconds`` after the SIGKILL. If this is cancelled, the shim still stops the engine. A
        shim that hangs is killed, and its engine at once with it.
        """
        began_at = asyncio.get_running_loop().time()
        self._send("stop", terminate_seconds=terminate_seconds, leftover_seconds=leftover_seconds)
        answers = await self._shim_answers()
        if answers:
            limit_seconds = self._stop_seconds + terminate_seconds + kill_seconds
            await asyncio.wait((self._gone,), timeout=limit_seconds)
            answers = await self._shim_answers()
        if not answers:
            await asyncio.wait((self._gone,), timeout=kill_seconds)
        if not self._gone.done():
            raise ProcessStuck(self._find_living(), asyncio.get_running_loop().time() - began_at)
        if (command := self._stop_command) is not None:
            # The shim was killed before it could run it.
            self._stop_command = None
            await run_stop_command(command, self._stop_seconds, self._redact)

    def _find_living(self) -> list[int]:
        """The tree's processes, or the shim where only that is left."""
        living = {*(find_living(self.pid) if self.pid else ())}
        if self._connection is not None:
            living.update(self._connection.find_living())
        return sorted(living - {self.shim_pid} or living)

    async def dump(self, argv: Sequence[str], timeout_seconds: float) -> None:
        """Run criu's command line ``argv``, which puts the engine into an image; raises DumpFailed.

        Then the engine's processes are gone without a call of ``on_exit``; its temporary directory stays until
        ``release``. Cancelled, this stops criu, and returns once it is known whether the engine ``is_dumped``.
        """
        if self._exited.done() or self._gone.done():
            raise DumpFailed("it has ended already", engine_runs=False)
        self._dumping = asyncio.get_running_loop().create_future()
        self._send("dump", argv=list(argv), timeout_seconds=timeout_seconds)
        limit_seconds = timeout_seconds + CRIU_END_SECONDS
        try:
            await self._shim_answers()
            await asyncio.wait((self._dumping,), timeout=limit_seconds)
        except asyncio.CancelledError:
            self._send("cancel_criu")
            await wait_uncancelled(self._dumping, CRIU_END_SECONDS)
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
        """After a dump: end the shim, which removes the temporary directory."""
        await self._end_shim(SHIM_END_SECONDS)

    async def stay(self, limit_seconds: float = STAY_SECONDS) -> None:
        """Let the engine outlive this process; nothing is reported from then on. SIGTERM to its shim stops it.

        Raises StayRefused if the shim does not confirm in time or the engine has ended; then nothing has changed.
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

    async def _abandon(self) -> None:
        self._on_exit = _ignore_exit
        limit_seconds = RESTORE_END_SECONDS if self._restored_pid else SHIM_END_SECONDS
        await self._end_shim(limit_seconds + self._stop_seconds)

    async def _end_shim(self, limit_seconds: float) -> None:
        """Close the connection, upon which the shim ends with all that it has; one that does not is killed."""
        if self._connection is not None:
            self._connection.close()
        await wait_uncancelled(self._gone, limit_seconds)
        if not self._gone.done():
            self._kill_shim(f"it has not ended within {limit_seconds:g} s")
            await wait_uncancelled(self._gone, SHIM_END_SECONDS)

    def _on_event(self, event: ShimEvent) -> None:  # noqa: C901 - a dispatch table
        match event:
            case Started(pid, pipes):
                self.pid = pid
                self.pipes = pipes
                self._set_started(None)
            case SpawnRefused(reason) | Failed(reason):
                self._set_started(reason)
                self._add_line("shim", reason)
            case Output(stream, lines):
                for line in lines:
                    self._add_line(stream, clean_line(line))
            case Dropped(lines):
                self._add_line(
                    "shim", f"{lines} lines of output were dropped: the engine prints faster than they are read"
                )
            case Refused(reason):
                self._add_line("shim", reason)
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
            case StopCommandEnded(status, reason, lines):
                if self._stop_command is not None:
                    _report_stop_command(self._stop_command.argv, status, reason, [*map(self._redact, lines)])
                self._stop_command = None
            case Pong():
                if not self._answered.done():
                    self._answered.set_result(None)
            case Stays():
                if not self._staying.done():
                    self._staying.set_result(None)
            case Gone():
                self._tree_gone = True
                if self._connection is not None:
                    self._connection.close()
            case _:
                assert_never(event)

    def _add_line(self, stream: str, line: str) -> None:
        line = self._redact(line)
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

    def _on_shim_end(self) -> None:
        self._set_started("its shim was killed before it had started the engine")
        session = self.pid or self._restored_pid
        if session == 0 or (self._tree_gone and not self.is_dumped):
            self._gone.set_result(None)
        elif self._tree_gone or (self._connection is not None and self._connection.shim_status == 0):
            self._finish()
        else:
            # The shim was killed: its engine is killed too, found by its session.
            kill_session(session, self._finish)

    def _finish(self) -> None:
        if self.temporary_directory is not None:
            shutil.rmtree(self.temporary_directory, ignore_errors=True)
        if not self.is_dumped:
            self._set_exited(SHIM_KILLED_STATUS)
        self._set_dumped("its shim was killed")
        self._gone.set_result(None)


def describe_criu_end(status: int | None, reason: str) -> str:
    """How a criu that failed has ended; unless it was killed, its log says why."""
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
        "temporary_directory": None if temporary is None else str(temporary),
        "block_io_uring": command.checkpointable,
        "stop_argv": list(command.stop_argv),
        "stop_seconds": command.stop_seconds,
    }


async def run_stop_command(
    command: LaunchCommand, limit_seconds: float, redact: Callable[[str], str] = str, *, may_fail: bool = False
) -> None:
    """Run a stop command to its end, or kill it after ``limit_seconds``; a failure is logged.

    ``may_fail``: it is expected to, as there is probably nothing that it could stop.
    """
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    try:
        process = await EngineProcess.spawn(command, on_line=_ignore_line, on_exit=ended.set_result, redact=redact)
    except SpawnFailed as failure:
        _report_stop_command(command.argv, None, failure.reason, (), may_fail=may_fail)
        return
    await asyncio.wait((ended,), timeout=limit_seconds)
    reason = "" if ended.done() else f"it did not end within {limit_seconds:g} s"
    await process.stop(0.0, STOP_COMMAND_KILL_SECONDS)
    _report_stop_command(command.argv, process.exit_status, reason, process.tail, may_fail=may_fail)


def _report_stop_command(
    argv: Sequence[str], status: int | None, reason: str, lines: Sequence[str], *, may_fail: bool = False
) -> None:
    if status == 0 and not reason:
        log.info("stop command has run", program=argv[0])
        return
    why = reason or describe_exit(status or 0)
    tell = log.debug if may_fail else log.warning
    tell("stop command failed", program=argv[0], reason=why, output=" | ".join(lines) or None)


def _ignore_line(stream: str, line: str) -> None:
    """For a command whose last lines are told when it has ended."""


def _ignore_exit(status: int) -> None:
    """For an engine that llmux has given up."""


def _call_safely(receiver: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
    """Report an exception in a callback to the event loop; it must not end the connection to the shim."""
    try:
        receiver(*arguments)
    except Exception as error:
        context = {"message": "a receiver of an engine's output or end failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
