"""One run of criu, as the shim's child and for so long at most."""

import signal
import time

from .spawn import spawn_criu
from .tree import signal_tree


class CriuRun:
    """A dump or a restore under way."""

    def __init__(self, verb: str, argv: list[str], timeout_seconds: float, inherited: tuple[int, ...] = ()) -> None:
        """Raises OSError where criu cannot be started."""
        self.verb = verb
        self.pid = spawn_criu(argv, inherited)
        self.timeout_seconds = timeout_seconds
        self.deadline: float | None = time.monotonic() + timeout_seconds
        self.root: int | None = None
        """The process that a restore makes."""
        self.root_status: int | None = None
        """How the engine's root ended meanwhile: news only if criu did not mean it to."""
        self.reason = ""
        """Why it was killed."""

    def kill_at_deadline(self, now: float) -> None:
        """Kill criu if its time is over."""
        if self.deadline is not None and now >= self.deadline:
            self.kill(f"it did not end within {self.timeout_seconds:g} s")

    def kill(self, reason: str) -> None:
        """Kill criu and its own children: the engine, frozen by it, runs on. Does nothing the second time."""
        if self.deadline is not None:
            self.deadline = None
            self.reason = reason
            signal_tree(signal.SIGKILL, self.pid)


def inherit_options(inodes: list[int], writers: tuple[int, int]) -> list[str]:
    """The arguments by which criu puts our pipes in the place of those that the engine had."""
    options = []
    for inode, writer in zip(inodes, writers, strict=True):
        options += ["--inherit-fd", f"fd[{writer}]:pipe:[{inode}]"]
    return options
