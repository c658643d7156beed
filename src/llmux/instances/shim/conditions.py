"""What the shim sets up in its own process, and the filter of system calls that it sets up in the engine's."""

import ctypes
import os
import signal
import struct

READ_BYTES = 65_536
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
"""Signals that the shim ignores and the engine does not."""

PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

SECCOMP_MODE_FILTER = 2
IO_URING_SETUP = 425
"""The same number on every architecture."""
ENOSYS = 38
LOAD_NUMBER = (0x20, 0, 0, 0)
SKIP_UNLESS_IO_URING = (0x15, 0, 1, IO_URING_SETUP)
FAIL = (0x06, 0, 0, 0x00050000 | ENOSYS)
ALLOW = (0x06, 0, 0, 0x7FFF0000)


class FilterProgram(ctypes.Structure):
    """The kernel's ``sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def set_own_conditions() -> None:
    """Survive the terminal's signals and those that stop llmux, and become the parent of every orphan of the tree."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    name_this_process(b"llmux-shim")
    become_child_subreaper()


def watch_children() -> int:
    """Return a descriptor that becomes readable whenever a child ends."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return reader


def read_available(descriptor: int) -> bytes:
    """Read what is there without waiting."""
    try:
        return os.read(descriptor, READ_BYTES)
    except BlockingIOError:
        return b""


def block_io_uring() -> None:
    """Make io_uring_setup fail in this process and its descendants as on an old kernel.

    criu cannot dump an io_uring. Newer libuv creates one whatever its environment says, but does without if it fails.
    """
    code = b"".join(struct.pack("HBBI", *step) for step in (LOAD_NUMBER, SKIP_UNLESS_IO_URING, FAIL, ALLOW))
    instructions = ctypes.create_string_buffer(code, len(code))
    program = FilterProgram(len(code) // 8, ctypes.addressof(instructions))
    # Without this, only root may set a filter, since a set-user-ID program would inherit it.
    set_attribute(PR_SET_NO_NEW_PRIVS, 1)
    set_attribute(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def name_this_process(name: bytes) -> None:
    """Set the name that ``ps`` shows."""
    text = ctypes.create_string_buffer(name)
    set_attribute(PR_SET_NAME, ctypes.addressof(text))


def become_child_subreaper() -> None:
    """Become the parent of every descendant whose own parent ends."""
    set_attribute(PR_SET_CHILD_SUBREAPER, 1)


def set_attribute(attribute: int, value: int, address: int = 0) -> None:
    """``prctl``, which Python does not have; raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).prctl
    if call(attribute, *map(ctypes.c_ulong, (value, address, 0, 0))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {attribute}: {os.strerror(number)}")
