"""One run of the command that ends what does not end with the engine's processes, such as a container."""

import os
import signal
import time
from collections import deque

from .output_pipe import OutputPipe
from .spawn import SpawnError, spawn
from .tree import signal_tree

LINES_KEPT = 8
LINE_CHARACTERS = 400
POLL_SECONDS = 0.01


class StopRun:
    """The command under way, a child of the shim."""

    def __init__(self, argv: list[str], environment: dict[str, str], timeout_seconds: float) -> None:
        """Start it; raises OSError, SpawnError."""
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        """The end of its output."""
        self.timeout_seconds = timeout_seconds
        self.deadline: float | None = time.monotonic() + timeout_seconds
        self.reason = ""
        """Why it was killed."""
        self.pid, readers = spawn(argv, environment, None, False)
        self.pipes = [OutputPipe("stop", reader, self._add_line) for reader in readers]
        for pipe in self.pipes:
            os.set_blocking(pipe.descriptor, False)

    def _add_line(self, stream: str, line: bytes) -> None:
        self.lines.append(line[:LINE_CHARACTERS].decode(errors="replace"))

    def kill_at_deadline(self, now: float) -> None:
        """Kill it with its children if its time is up."""
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.reason = f"it did not end within {self.timeout_seconds:g} s"
            signal_tree(signal.SIGKILL, self.pid)

    def close(self) -> None:
        """When it has ended: read what it printed last."""
        for pipe in self.pipes:
            pipe.drain()
            os.close(pipe.descriptor)


def run_to_its_end(argv: list[str], environment: dict[str, str], timeout_seconds: float) -> None:
    """Run it for a shim that nobody listens to any more."""
    try:
        run = StopRun(argv, environment, timeout_seconds)
    except (OSError, SpawnError):
        return
    while os.waitpid(run.pid, os.WNOHANG)[0] == 0:
        for pipe in run.pipes:
            pipe.read()
        run.kill_at_deadline(time.monotonic())
        time.sleep(POLL_SECONDS)
    run.close()
