"""Programs of llmux without their imports: forked from a process that has imported them already.

Importing takes a start most of its processor time, about a second, and the integration tests start some hundreds of
programs. A forked one is otherwise a process like any other, with a pid, signals, an environment, a directory and an
exit status of its own; that ``python -m llmux`` starts at all is shown by tests/integration/test_demo.py and
test_replay.py, which run it.

Each test process has one such process, the nursery: this module run as a program. It forks a keeper for each program,
which forks the program, waits for it and reports its pid and its exit status.
"""

import asyncio
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

COMMANDS = ("main", "serve", "check", "control", "validate", "checkpoint")
"""The modules of llmux.cli that the nursery imports beforehand."""
ORDER_BYTES_MAX = 1 << 20
LINE_BYTES_MAX = 1 << 20


class ForkedProcess:
    """A running program, with what the tests need of ``asyncio.subprocess.Process``."""

    def __init__(self, report: "_Report", stdout: asyncio.StreamReader | None, stderr: asyncio.StreamReader) -> None:
        self._report = report
        self.stdout = stdout
        self.stderr = stderr

    @property
    def pid(self) -> int:
        """The program's process id."""
        return int(self._report.lines()[0])

    @property
    def returncode(self) -> int | None:
        """None while it runs; the number of the signal that killed it, negated."""
        return int(self._report.lines()[1]) if self._report.complete.is_set() else None

    async def wait(self) -> int:
        """Wait for its end."""
        await self._report.complete.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError after its end."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


async def start_llmux(
    *arguments: str, directory: Path | None, environment: Mapping[str, str], pipe_stdout: bool = False
) -> ForkedProcess:
    """Start ``llmux`` with a command line, standard error piped; ``environment`` is added to this process's own."""
    order = {
        "arguments": arguments,
        "directory": str(directory or Path.cwd()),
        "environment": {**os.environ, **environment},
    }
    report, report_end = await _piped_report()
    stderr, stderr_end = await _piped_stream()
    stdout, stdout_end = await _piped_stream() if pipe_stdout else (None, os.open(os.devnull, os.O_WRONLY))
    ends = [report_end, stdout_end, stderr_end]
    try:
        socket.send_fds(nursery()[1], [json.dumps(order).encode()], ends)
    finally:
        for end in ends:
            os.close(end)
    await report.started.wait()
    return ForkedProcess(report, stdout, stderr)


@cache
def nursery() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """This process's nursery, started at the first call, and the socket for orders to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return process, ours


def close_nursery() -> None:
    """End it, if there is one."""
    if nursery.cache_info().currsize:
        process, orders = nursery()
        orders.close()
        process.wait()
        nursery.cache_clear()


class _Report(asyncio.Protocol):
    """What a keeper writes: the program's pid, a line; later its exit status, and the end."""

    def __init__(self) -> None:
        self._text = b""
        self.started = asyncio.Event()
        self.complete = asyncio.Event()

    def lines(self) -> list[bytes]:
        return self._text.splitlines()

    def data_received(self, data: bytes) -> None:
        self._text += data
        self.started.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.complete.set()
        self.started.set()


async def _piped_report() -> tuple[_Report, int]:
    read_end, write_end = os.pipe()
    _, report = await asyncio.get_running_loop().connect_read_pipe(_Report, os.fdopen(read_end, "rb", 0))
    return report, write_end


async def _piped_stream() -> tuple[asyncio.StreamReader, int]:
    read_end, write_end = os.pipe()
    stream = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(read_end, "rb", 0)
    )
    return stream, write_end


def tend(orders: socket.socket) -> None:
    """The nursery's loop. Returns only in a program that is to begin, with everything in place for its ``main``."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES_MAX, 3)
        _reap(os.WNOHANG)
        if not message:
            sys.exit()
        report, stdout, stderr = descriptors
        if not os.fork():
            orders.close()
            pid = os.fork()
            if not pid:
                os.close(report)
                become(json.loads(message), stdout, stderr)
                return
            os.close(stdout)
            os.close(stderr)
            os.write(report, b"%d\n" % pid)
            _, status = os.waitpid(pid, 0)
            os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def become(order: Mapping[str, object], stdout: int, stderr: int) -> None:
    """Take on a program's command line, environment, directory, streams and signals."""
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
    tempfile.tempdir = None  # Found out anew from TMPDIR.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _reap(options: int) -> None:
    """Fetch the exit status of keepers that have ended, so that their processor time counts as this process's."""
    try:
        while os.waitpid(-1, options)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    """The nursery, and each of its programs."""
    # Ctrl-C reaches every process of the terminal; the nursery ends with its test process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for command in COMMANDS:
        import_module(f"llmux.cli.{command}")
    gc.freeze()
    tend(socket.socket(fileno=int(sys.argv[1])))
    import_module("llmux.cli.main").main()


if __name__ == "__main__":
    main()
