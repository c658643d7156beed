"""The engine's own temporary directory: kept in the image, for criu wants its files and the place of its sockets."""

import os
import shutil
import stat
from pathlib import Path

from llmux.checkpoints.copying import copy_sparse

FOLDER = "tmp"
"""Of an image."""


class DirectoryTaken(Exception):
    """Something else is where the engine's temporary directory was."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is there already and is not a directory of llmux's")


def take_into_image(image: Path, directory: Path) -> None:
    """Copy all but the sockets, which criu makes anew; raises OSError."""
    copy_tree(directory, image / FOLDER)


def put_back(image: Path, directory: Path) -> None:
    """Make the directory as it was; raises OSError, DirectoryTaken. After a failure it is not there.

    No engine can be using a leftover of it: the numbers of the engine's processes have been found free.
    """
    remove_leftover(directory)
    try:
        copy_tree(image / FOLDER, directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory to a name that is not there yet: files, links and named pipes, no sockets."""
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


def remove_leftover(directory: Path) -> None:
    """Remove what a former life of the engine left; raises DirectoryTaken where it is somebody else's."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise DirectoryTaken(directory)
    shutil.rmtree(directory)
