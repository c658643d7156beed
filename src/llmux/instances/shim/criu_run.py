"""One run of criu as a child of the shim, with a time limit."""

import os
import signal
import time

from .conditions import IGNORED_SIGNALS
from .tree import signal_tree


class CriuRun:
    """A dump or a restore under way."""

    def __init__(self, verb: str, argv: list[str], timeout_seconds: float, inherited: tuple[int, ...] = ()) -> None:
        """Start criu; raises OSError."""
        self.verb = verb
        self.pid = spawn_criu(argv, inherited)
        self.timeout_seconds = timeout_seconds
        self.deadline: float | None = time.monotonic() + timeout_seconds
        self.root: int | None = None
        """The process that a restore creates."""
        self.root_status: int | None = None
        """The exit status of the engine's root, if it ended meanwhile; reported only if criu did not end it."""
        self.reason = ""
        """Why criu was killed."""

    def kill_at_deadline(self, now: float) -> None:
        """Kill criu if its time is up."""
        if self.deadline is not None and now >= self.deadline:
            self.kill(f"it did not end within {self.timeout_seconds:g} s")

    def kill(self, reason: str) -> None:
        """Kill criu with its children, once; an engine that it has frozen runs on."""
        if self.deadline is not None:
            self.deadline = None
            self.reason = reason
            signal_tree(signal.SIGKILL, self.pid)


def inherit_options(inodes: list[int], writers: tuple[int, int]) -> list[str]:
    """The arguments that make criu use our pipes in place of those that the engine had."""
    options = []
    for inode, writer in zip(inodes, writers, strict=True):
        options += ["--inherit-fd", f"fd[{writer}]:pipe:[{inode}]"]
    return options


def spawn_criu(argv: list[str], inherited: tuple[int, ...] = ()) -> int:
    """Start criu without output, with descriptors that it inherits under the same numbers; returns its pid.

    Raises OSError.
    """
    for descriptor in inherited:
        os.set_inheritable(descriptor, True)
    return os.posix_spawn(
        argv[0],
        argv,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsigdef=(*IGNORED_SIGNALS, signal.SIGXFSZ),
    )
