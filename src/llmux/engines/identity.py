"""Short names for programs and files, by which what was made with them is found again, or not any more."""

import hashlib
import shutil
from pathlib import Path

CHARACTERS = 16
"""Of a SHA-256 in hexadecimal: 64 bits, of which no two collide by chance."""


def digest(*parts: object) -> str:
    """A name for some values, usable as a file's."""
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogateescape")).hexdigest()[:CHARACTERS]


def file_identity(path: str) -> str:
    """A name for a file as it is now: another one after it was replaced. Reads the disk.

    A program may be a name on PATH. What does not exist is named by its path alone.
    """
    found = Path(shutil.which(path) or path)
    try:
        stat = found.stat()
    except OSError:
        return digest(path)
    return digest(found.resolve(), stat.st_size, stat.st_mtime_ns)
