"""What the shim's own process is like: deaf to the terminal, the parent of orphans, told of every child's end."""

import os
import signal

from .spawn import IGNORED_SIGNALS
from .system_calls import become_child_subreaper, name_this_process

READ_BYTES = 65_536


def set_own_conditions() -> None:
    """Deaf to the terminal and to whoever stops llmux, and the parent of every orphan of the tree."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    name_this_process(b"llmux-shim")
    become_child_subreaper()


def watch_children() -> int:
    """Make every end of a child readable on the descriptor that is returned."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return reader


def read_available(descriptor: int) -> bytes:
    """What can be read without waiting."""
    try:
        return os.read(descriptor, READ_BYTES)
    except BlockingIOError:
        return b""
