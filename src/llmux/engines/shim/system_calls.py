"""System calls that Python has no function for: attributes of this process, and a filter of system calls."""

import ctypes
import os
import struct

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


def block_io_uring() -> None:
    """Let every later attempt of this process and its children to make an io_uring fail as on an old kernel.

    criu cannot dump one, libuv makes one whatever its environment says, and goes on without it where it cannot.
    """
    code = b"".join(struct.pack("HBBI", *step) for step in (LOAD_NUMBER, SKIP_UNLESS_IO_URING, FAIL, ALLOW))
    instructions = ctypes.create_string_buffer(code, len(code))
    program = FilterProgram(len(code) // 8, ctypes.addressof(instructions))
    # Without it only root may set a filter, which a set-user-ID program would inherit.
    set_attribute(PR_SET_NO_NEW_PRIVS, 1)
    set_attribute(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def name_this_process(name: bytes) -> None:
    """What ``ps`` shows."""
    text = ctypes.create_string_buffer(name)
    set_attribute(PR_SET_NAME, ctypes.addressof(text))


def become_child_subreaper() -> None:
    """Be the parent of every descendant whose own parent ends."""
    set_attribute(PR_SET_CHILD_SUBREAPER, 1)


def set_attribute(attribute: int, value: int, address: int = 0) -> None:
    """Set an attribute of this process; raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).prctl
    if call(attribute, *map(ctypes.c_ulong, (value, address, 0, 0))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {attribute}: {os.strerror(number)}")
