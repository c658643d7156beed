"""Runs ``llmux`` in forks of a process that has imported it.

Importing is most of what a start costs, about a second of processor time, and the integration tests start hundreds of
programs. A fork has a pid, signals, an environment, a directory and an exit status of its own, as a program that was
executed has. That ``python -m llmux`` works is shown by tests/integration/test_demo.py, which does not use this.

Each test process has one fork server: this module, run as a program. For each order it forks a supervisor, which forks
the program, waits for it, and reports its pid and its exit status through a pipe.
"""

import asyncio
import atexit
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TypeVar

IMPORTED = ("main", "serve", "check", "control", "validate", "checkpoint", "replay", "run")
"""The modules of llmux.cli that the fork server imports beforehand. Others are imported by the forks that need them."""
ORDER_BYTES_MAX = 1 << 20
LINE_BYTES_MAX = 1 << 20


Reader = TypeVar("Reader", bound=asyncio.BaseProtocol)


class ForkedProcess:
    """A running program, with what the tests need of ``asyncio.subprocess.Process``."""

    def __init__(self, report: "_Report", stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._report = report
        self.stdout = stdout
        self.stderr = stderr

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._report.numbers()[0]

    @property
    def returncode(self) -> int | None:
        """None while it runs; the number of the signal that killed it, negated."""
        return self._report.numbers()[1] if self._report.complete.is_set() else None

    async def wait(self) -> int:
        """Wait for its end; what it writes has to be read meanwhile, if it is more than a pipe holds."""
        await self._report.complete.wait()
        return self._report.numbers()[1]

    async def communicate(self) -> tuple[bytes, bytes]:
        """Everything that it has written to standard output and standard error, when it has ended."""
        output, errors, _ = await asyncio.gather(self.stdout.read(), self.stderr.read(), self.wait())
        return output, errors

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError after its end."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


async def start_llmux(*arguments: str, directory: Path | None, environment: Mapping[str, str]) -> ForkedProcess:
    """Start ``llmux`` with a command line; ``environment`` is added to this process's own. Its output is piped."""
    order = {
        "arguments": arguments,
        "directory": str(directory or Path.cwd()),
        "environment": {**os.environ, **environment},
    }
    ends: list[int] = []
    try:
        report = await _piped(_Report(), ends)
        stdout, stderr = (asyncio.StreamReader(limit=LINE_BYTES_MAX) for _ in range(2))
        for stream in (stdout, stderr):
            await _piped(asyncio.StreamReaderProtocol(stream), ends)
        socket.send_fds(orders_to_fork_server(), [json.dumps(order).encode()], ends)
    finally:
        for end in ends:
            os.close(end)
    await report.started.wait()
    return ForkedProcess(report, stdout, stderr)


@cache
def orders_to_fork_server() -> socket.socket:
    """This test process's fork server, started at the first call: the socket by which it is given orders."""
    orders, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other_end:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(other_end.fileno())],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[other_end.fileno()],
        )
    # Not one of pytest's hooks: xdist's workers end without those that would come late enough.
    atexit.register(process.wait)
    atexit.register(orders.close)
    return orders


class _Report(asyncio.Protocol):
    """What a supervisor writes: the program's pid at once and its exit status at its end, a line each."""

    def __init__(self) -> None:
        self._text = b""
        self.started = asyncio.Event()
        self.complete = asyncio.Event()

    def numbers(self) -> list[int]:
        return [int(line) for line in self._text.splitlines()]

    def data_received(self, data: bytes) -> None:
        self._text += data
        self.started.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.started.set()
        self.complete.set()


async def _piped(protocol: Reader, ends: list[int]) -> Reader:
    """Let the protocol read a new pipe, and append the pipe's other end to ``ends``."""
    read_end, write_end = os.pipe()
    ends.append(write_end)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", 0))
    return protocol


def serve(orders: socket.socket) -> None:
    """Start programs as ordered. Returns only in a fork that is to become one."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES_MAX, 3)
        _reap()
        if not message:
            sys.exit()
        if os.fork() == 0:
            orders.close()
            return _supervise(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(order: Mapping[str, object], report: int, stdout: int, stderr: int) -> None:
    """Fork the program, in which this returns, and report what becomes of it."""
    pid = os.fork()
    if pid == 0:
        os.close(report)
        return _become(order, stdout, stderr)
    os.close(stdout)
    os.close(stderr)
    os.write(report, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(order: Mapping[str, object], stdout: int, stderr: int) -> None:
    """Take on the program's command line, environment, directory, streams and signals."""
    for source, target in ((stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    arguments, environment, directory = order["arguments"], order["environment"], order["directory"]
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    assert isinstance(directory, str)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.argv[1:] = arguments
    tempfile.tempdir = None  # TMPDIR may be another one now.
    # Also where the tests run in a shell's background, whose jobs inherit that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _reap() -> None:
    """Fetch the exit status of supervisors that have ended, so that their processor time counts as this process's."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    """The fork server, and each of its programs."""
    # Ctrl-C reaches every process of a terminal; this one ends with its test process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in IMPORTED:
        import_module(f"llmux.cli.{module}")
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
    import_module("llmux.cli.main").main()


if __name__ == "__main__":
    main()
