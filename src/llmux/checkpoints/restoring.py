"""What surrounds criu's own work in a restore: checks before it, the files that it expects, and their removal."""

from contextlib import suppress
from pathlib import Path

import psutil

from llmux.checkpoints import copying, shared_memory
from llmux.checkpoints.manifest import Manifest
from llmux.checkpoints.processes import find_taken
from llmux.errors import RestoreFailed
from llmux.hosts.local import is_free

GIB = 1 << 30


def find_obstacle(manifest: Manifest) -> str | None:
    """Why the engine cannot be restored at present; None if it can.

    The pids in particular must be free: after a failed restore, the processes that have them are killed.
    """
    if not is_free(manifest.port):
        return f"port {manifest.port} is taken by another process"
    if taken := find_taken(manifest.required_ids):
        number = min(taken)
        return f"it needs the process number {number}, which is in use by {taken[number]!r}"
    return lack_of_memory(manifest.size_bytes)


def put_files_back(image: Path, manifest: Manifest) -> None:
    """Put the files that criu expects outside the image back to their paths; raises RestoreFailed."""
    try:
        shared_memory.put_back(image, manifest.shared_memory)
        if manifest.temporary_directory is not None:
            copying.restore_temporary_directory(image, Path(manifest.temporary_directory))
    except (OSError, shared_memory.NameTaken, copying.DirectoryTaken) as error:
        raise RestoreFailed(f"its files could not be put back: {error}", is_passing=True) from error


def remove_files(manifest: Manifest) -> None:
    """Remove the files that were put back for a restore that failed; raises OSError."""
    shared_memory.remove_unused(manifest.shared_memory)
    if manifest.temporary_directory is not None:
        with suppress(copying.DirectoryTaken):
            copying.remove_temporary_directory(Path(manifest.temporary_directory))


def lack_of_memory(image_bytes: int) -> str | None:
    """Why an engine with an image of this size does not fit into memory; None if it does."""
    available = psutil.virtual_memory().available
    if available < image_bytes:
        return f"it needs {image_bytes / GIB:.2f} GiB of memory, of which {available / GIB:.2f} GiB are free"
    return None
