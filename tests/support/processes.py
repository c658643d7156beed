"""Small engines for tests of real processes, and what becomes of their processes."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_SECONDS = 10.0

PRINT_PID_AND_WAIT = "import os, signal; print(os.getpid(), flush=True); signal.pause()"

IGNORE_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PRINT_PID_AND_WAIT}"

STUBBORN_TREE = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
    os.write(write, b"%d\\n" % os.getpid())
    signal.pause()
if os.fork() == 0:
    os.write(write, b"%d\\n" % os.getpid())
    signal.pause()
data = b"%d\\n" % os.getpid()
while data.count(b"\\n") < 4:
    data += os.read(read, 100)
os.write(1, data)
while True:
    signal.pause()
"""
"""Prints four pids, one a line: itself, and children of which two left its session; all ignore SIGTERM."""

ROOT_DIES_CHILD_LIVES = """
import os, sys
fifo = sys.argv[1]
if os.fork() == 0:
    os.write(1, b"%d\\n" % os.getpid())
    open(fifo).read()
    os._exit(0)
os._exit(3)
"""
"""Ends with 3; its child prints its pid and lives until somebody has opened and closed the FIFO for writing."""


def is_living(pid: int) -> bool:
    """Whether there is such a process, and not only an exit status that nobody has fetched."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def wait_until(condition: Callable[[], bool], what: str, deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """For what announces itself to nobody: another process's state. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_seconds} s: {what}"
        time.sleep(0.005)


def wait_until_dead(pids: list[int], deadline_seconds: float = DEADLINE_SECONDS) -> None:
    wait_until(lambda: not any(map(is_living, pids)), f"the end of {pids}", deadline_seconds)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Like ``wait_until``, letting the event loop run."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        await asyncio.sleep(0)
