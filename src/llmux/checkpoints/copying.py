"""Copies of files that keep their holes, their modes and their times."""

import errno
import os
import shutil
from pathlib import Path

CHUNK_BYTES = 1 << 30


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a regular file to a name that is not there yet; raises OSError."""
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        os.ftruncate(writer.fileno(), size)
        for start, end in _data(reader.fileno(), size):
            _copy_range(reader.fileno(), writer.fileno(), start, end)
    shutil.copystat(source, target)


def _data(descriptor: int, size: int) -> list[tuple[int, int]]:
    """Where there is anything between the holes."""
    parts = []
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        parts.append((start, end))
    return parts


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    os.lseek(writer, start, os.SEEK_SET)
    while start < end:
        copied = os.sendfile(writer, reader, start, min(end - start, CHUNK_BYTES))
        if copied == 0:
            return
        start += copied
