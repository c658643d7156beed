"""The page cache: how much of a file is in it, so that it need not be read from the disk, and putting more into it.

Linux tells what is there by ``cachestat`` (6.5 and later) or ``mincore``, and only of files that one owns or may write.
Neither reads anything.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHESTAT = 451
"""The number of the system call, the same on all architectures."""
MADV_POPULATE_READ = 22
"""From Linux 5.14 on; Python has no name for it."""
PAGE_BYTES = mmap.PAGESIZE
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int64),
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "just_evicted"))


@dataclass(frozen=True, slots=True)
class Cached:
    """What of some files is in the page cache."""

    cached_bytes: int
    size_bytes: int
    """Of the files."""


def cached_bytes(descriptor: int, offset: int, length: int) -> int | None:
    """What of a range of an open file is in the page cache; None if that cannot be known.

    ``offset`` must be a multiple of ``PAGE_BYTES``.
    """
    if length <= 0:
        return 0
    counted = _count_by_cachestat(descriptor, offset, length)
    if counted is None and _may_be_known(descriptor):
        counted = _count_by_mincore(descriptor, offset, length)
    return None if counted is None else min(length, counted * PAGE_BYTES)


def cached_bytes_of(files: Iterable[Path]) -> Cached | None:
    """What of files is in the page cache; None if that cannot be known. Unreadable ones are left out.

    Reads the directory, but not the files.
    """
    cached = size = 0
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:
            continue
        try:
            length = os.fstat(descriptor).st_size
            found = cached_bytes(descriptor, 0, length)
        finally:
            os.close(descriptor)
        if found is None:
            return None
        cached, size = cached + found, size + length
    return Cached(cached, size)


def populate(descriptor: int, offset: int, length: int) -> bool:
    """Wait until a range of an open file is in the page cache, and copy nothing; whether the kernel and the file can.

    ``offset`` must be a multiple of ``PAGE_BYTES``. Raises OSError if it cannot be read: the end of a file that has
    become shorter meanwhile, too.
    """
    with _mapped(descriptor, offset, length) as address:
        if address is None:
            return False
        while _libc.madvise(address, length, MADV_POPULATE_READ):
            match ctypes.get_errno():
                case errno.EINTR:
                    continue
                case errno.EINVAL:
                    return False
                case number:
                    raise OSError(number, os.strerror(number))
    return True


@contextmanager
def _mapped(descriptor: int, offset: int, length: int) -> Iterator[int | None]:
    """The address of a range of a file; None if it cannot be mapped."""
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
    if address == _MAP_FAILED:
        yield None
        return
    try:
        yield address
    finally:
        _libc.munmap(address, length)


def _count_by_cachestat(descriptor: int, offset: int, length: int) -> int | None:
    pages = _Pages()
    asked = _Range(offset, length)
    status = _libc.syscall(CACHESTAT, descriptor, ctypes.byref(asked), ctypes.byref(pages), 0)
    return None if status else int(pages.cached)


def _may_be_known(descriptor: int) -> bool:
    """Of other people's files, ``mincore`` says that all of them is there."""
    return os.fstat(descriptor).st_uid == os.geteuid() or os.access(f"/proc/self/fd/{descriptor}", os.W_OK)


def _count_by_mincore(descriptor: int, offset: int, length: int) -> int | None:
    with _mapped(descriptor, offset, length) as address:
        resident = ctypes.create_string_buffer(-(-length // PAGE_BYTES))
        if address is None or _libc.mincore(address, length, resident):
            return None
        return resident.raw.count(b"\x01")
