"""A worker process, which owns the GPU memory and goes on for a while after its root has died."""

import contextlib
import os
import signal
import time
from pathlib import Path


def fork_worker(linger_seconds: float) -> int:
    """Start the worker and return its pid; call it before there are threads, sockets or an event loop.

    The worker notices its root's end by the closing of a pipe, and stays in its root's process group.
    """
    read_end, write_end = os.pipe()
    if pid := os.fork():
        os.close(read_end)
        return pid
    try:
        os.close(write_end)
        for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("VLLM::Worker", encoding="ascii")
        os.read(read_end, 1)
        time.sleep(linger_seconds)
    finally:
        os._exit(0)


def has_ended(pid: int) -> bool:
    """Reap the worker if it is dead; whether it was."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False
