"""The operator's shell commands: each runs in a session of its own, is heard, and is killed when its time is up."""

import asyncio
import os
import subprocess
from collections.abc import Callable, Mapping
from functools import partial

from llmux.cancellation import wait_uncancelled
from llmux.instances.output import clean_line
from llmux.instances.process import describe_exit
from llmux.instances.sessions import kill_session

KILL_SECONDS = 10.0
"""From SIGKILL to the end of the last process; one that takes longer hangs in the kernel."""
_READ_BYTES = 65_536
_LINE_BYTES_MAX = 65_536


class ShellCommands:
    """Runs the commands of one model, and hears what they print.

    A command that succeeds may leave processes behind, as an engine that it has started: they are heard until they
    close their output, or until ``close``. One that does not succeed leaves none.
    """

    def __init__(self, environment: Mapping[str, str], on_line: Callable[[str], None]) -> None:
        self._environment = dict(environment)
        self._on_line = on_line
        self._outputs: set[_Output] = set()

    async def run(self, command: str, limit_seconds: float) -> str | None:
        """Run a command; returns why it failed, None if it ended with 0 in time. Raises OSError.

        After a failure, or when cancelled, all of its processes have been killed.
        """
        reader, writer = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - it is waited for without blocking
                ("sh", "-c", command),
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                env=self._environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        output = _Output(reader, self._on_line, self._outputs)
        has_succeeded = False
        try:
            async with asyncio.timeout(limit_seconds):
                await _wait_ended(process.pid)
            status = process.wait()
            has_succeeded = status == 0
            return None if has_succeeded else f"ended with {describe_exit(status)}"
        except TimeoutError:
            return f"took longer than {limit_seconds:g} s and was killed"
        finally:
            if not has_succeeded:
                await _kill(process)
            output.read()

    def close(self) -> None:
        """Hear no more. A process that still prints then gets SIGPIPE."""
        for output in list(self._outputs):
            output.close()


async def _wait_ended(pid: int) -> None:
    """Wait for the end of a child without reaping it."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    descriptor = os.pidfd_open(pid)
    try:
        loop.add_reader(descriptor, _settle, ended)
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command with all that it has started, also where it was cancelled, and wait until they are gone."""
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    kill_session(process.pid, partial(_settle, gone))
    try:
        await wait_uncancelled(gone, KILL_SECONDS)
    finally:
        process.poll()


class _Output:
    """One command's output, cut into lines."""

    def __init__(self, descriptor: int, on_line: Callable[[str], None], open_outputs: "set[_Output]") -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._on_line = on_line
        self._open_outputs = open_outputs
        self._partial = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read_once)
        open_outputs.add(self)

    def read(self) -> None:
        """Read what is there."""
        while self in self._open_outputs and self._read_once():
            pass

    def close(self) -> None:
        """Stop reading; a last line without an end counts."""
        if self in self._open_outputs:
            self._open_outputs.discard(self)
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._take(b"\n" if self._partial else b"")

    def _read_once(self) -> bool:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._take(data)
        else:
            self.close()
        return bool(data)

    def _take(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LINE_BYTES_MAX:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._on_line(clean_line(line.decode(errors="replace")))
