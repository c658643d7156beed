"""Looking for files in directories that llmux may not be allowed to search.

There pathlib's functions of the same meaning raise PermissionError up to Python 3.13; these say no.
"""

import os
from pathlib import Path


def exists(path: str | Path) -> bool:
    """Whether something is there, as far as can be seen."""
    return os.path.exists(path)  # noqa: PTH110


def is_directory(path: str | Path) -> bool:
    """Whether a directory is there, as far as can be seen."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | Path) -> bool:
    """Whether a file is there, as far as can be seen."""
    return os.path.isfile(path)  # noqa: PTH113
