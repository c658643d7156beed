"""One criu at a time on a machine: what it leaves in /dev/shm is numbered alike for everybody."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIRECTORY = Path("/dev/shm")
"""What the lock protects is what is locked, so that it has the same reach, and leaves no file."""


@contextmanager
def opened_lock() -> Iterator[int]:
    """The descriptor of a lock that is not held yet; its end sets the lock free."""
    descriptor = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
