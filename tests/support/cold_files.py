"""Files of which nothing is in the page cache."""

import os
from pathlib import Path

import pytest

from llmux.hosts.page_cache import Cached, cached_bytes_of

MIB = 1 << 20
ATTEMPTS = 20
"""To drop a file: pages that the kernel is busy with stay."""


def write_cold(path: Path, mib: int) -> Path:
    """A new file of random bytes. Skips the test where its file system keeps all files in memory, or does not tell."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
    for _ in range(ATTEMPTS):
        drop(path)
        if cached_bytes_of([path]) == Cached(0, mib * MIB):
            return path
    pytest.skip("what is in the page cache is not known here, or the file system keeps all files in memory")


def drop(path: Path, begin: int = 0) -> None:
    """Remove a file from the page cache, from one of its bytes on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, begin, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached_mib(*files: Path) -> float:
    """What of files is in the page cache."""
    found = cached_bytes_of(files)
    assert found is not None
    return found.cached_bytes / MIB
