"""Whether there is room for an image where it goes, and for its engine in memory."""

import os
from pathlib import Path

import psutil

MARGIN_BYTES = 64 << 20
"""For what is in an image beside memory."""
GIB = 1 << 30


def lack_of_disk(directory: Path, image_bytes: int) -> str | None:
    """Why an image of this size cannot be written there, or None."""
    stat = os.statvfs(directory)
    needed = image_bytes + MARGIN_BYTES
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        return f"the image needs {_shown(needed)} in {directory}, where {_shown(free)} are free"
    if is_in_memory(directory) and (available := psutil.virtual_memory().available) < needed:
        return (
            f"the image needs {_shown(needed)} in {directory}, that is in memory, of which {_shown(available)} are free"
        )
    return None


def lack_of_memory(image_bytes: int) -> str | None:
    """Why an engine of this size cannot be restored, or None."""
    available = psutil.virtual_memory().available
    if available < image_bytes:
        return f"it needs {_shown(image_bytes)} of memory, of which {_shown(available)} are free"
    return None


def is_in_memory(directory: Path) -> bool:
    """Whether the directory lies in a file system that takes memory for its files."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    return False


def _shown(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
