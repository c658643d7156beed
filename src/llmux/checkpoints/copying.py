"""Copies of an engine's files in its image: sparse files, directories, and the engine's temporary directory.

criu does not store the contents of regular files, and expects each open file where and as it was.
"""

import errno
import os
import shutil
import stat
from pathlib import Path

FOLDER = "tmp"
"""The copy of the temporary directory within an image."""
CHUNK_BYTES = 1 << 30


class DirectoryTaken(Exception):
    """The path of the engine's temporary directory is in use by something else."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is there already and is not a directory of llmux's")


def save_temporary_directory(image: Path, directory: Path) -> None:
    """Copy the engine's temporary directory into the image; raises OSError."""
    copy_tree(directory, image / FOLDER)


def restore_temporary_directory(image: Path, directory: Path) -> None:
    """Recreate the engine's temporary directory at its old path; raises OSError, DirectoryTaken.

    After a failure the directory does not exist. A directory left there by an earlier run of the engine is replaced: no
    engine can be using it, since all pids of the image have been found free.
    """
    remove_temporary_directory(directory)
    try:
        copy_tree(image / FOLDER, directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def remove_temporary_directory(directory: Path) -> None:
    """Remove what an earlier run of the engine left; raises DirectoryTaken if it is not our user's directory."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise DirectoryTaken(directory)
    shutil.rmtree(directory)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory to a path that does not exist yet: files, links and named pipes.

    Sockets are left out: criu creates them itself, and fails if they exist.
    """
    target.mkdir(mode=0o700, parents=True)
    with os.scandir(source) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            copy = target / entry.name
            if stat.S_ISDIR(mode):
                copy_tree(Path(entry.path), copy)
            elif stat.S_ISREG(mode):
                copy_sparse(Path(entry.path), copy)
            elif stat.S_ISLNK(mode):
                copy.symlink_to(Path(entry.path).readlink())
            elif stat.S_ISFIFO(mode):
                os.mkfifo(copy, stat.S_IMODE(mode))
    shutil.copystat(source, target)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a regular file with its holes, mode and times to a path that does not exist yet; raises OSError.

    Shared memory of engines is mostly holes: a copy that filled them would need many times the space.
    """
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        os.ftruncate(writer.fileno(), size)
        for start, end in find_data(reader.fileno(), size):
            _copy_range(reader.fileno(), writer.fileno(), start, end)
    shutil.copystat(source, target)


def find_data(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The ranges of a file that are not holes, as offsets of start and end."""
    ranges = []
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: only a hole is left
                raise
            break
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        ranges.append((start, end))
    return ranges


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    os.lseek(writer, start, os.SEEK_SET)
    while start < end:
        copied = os.sendfile(writer, reader, start, min(end - start, CHUNK_BYTES))
        if copied == 0:  # the file was truncated meanwhile
            return
        start += copied
