"""Where images are: private directories, each complete or not there."""

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from llmux.checkpoints.manifest import NAME as MANIFEST_NAME
from llmux.checkpoints.unfinished import END as NEW
from llmux.checkpoints.unfinished import clear
from llmux.errors import ImageUnusable

CLEAN = "images"
FROZEN = "frozen"
"""Images with requests in flight: good for one restore."""
OLD = ".old"
RESERVED = frozenset({"", ".", "..", *(name + end for name in (CLEAN, FROZEN) for end in ("", NEW, OLD))})
FOREIGN_WRITERS = stat.S_IWGRP | stat.S_IWOTH


def image_path(images_directory: Path, model: str, *, frozen: bool) -> Path:
    """The image's directory; ``/`` in the name makes nested ones. Raises ImageUnusable where the name cannot be one."""
    parts = model.split("/")
    if wrong := sorted(RESERVED.intersection(parts)):
        raise ImageUnusable(
            images_directory,
            f"the model's name {model!r} has the part {wrong[0]!r}, which cannot be a directory's name",
        )
    return images_directory.joinpath(*parts, FROZEN if frozen else CLEAN)


def place_of_new(path: Path) -> Path:
    """Where a new image is built, beside its later place."""
    return path.with_name(path.name + NEW)


def begin(new: Path, top: Path) -> None:
    """Make the directory in which a new image is built; raises OSError, ImageUnusable.

    What is left there of one that was never finished is removed.
    """
    for directory in reversed((new.parent, *new.parent.parents)):
        if directory.is_relative_to(top) and not directory.exists():
            directory.mkdir(mode=0o700, parents=True)
    check_owner(new.parent, top)
    clear(new)
    new.mkdir(mode=0o700)


def finish(new: Path) -> Path:
    """Put the new image, which has a manifest, into its place; raises OSError."""
    path = new.with_name(new.name.removesuffix(NEW))
    old = path.with_name(path.name + OLD)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return path


def sync(path: Path) -> None:
    """Return when all of an image is on the disk; raises OSError."""
    for entry in (*path.rglob("*"), path, path.parent):
        if not entry.is_symlink() and (entry.is_file() or entry.is_dir()):
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def spend(path: Path) -> None:
    """Make an image one from which nothing is restored any more, at once whatever its size."""
    # What is below a file is not there either.
    with suppress(NotADirectoryError):
        (path / MANIFEST_NAME).unlink(missing_ok=True)


def remove(path: Path, top: Path) -> None:
    """Remove an image, the manifest first, and the directories above it that are empty then."""
    spend(path)
    shutil.rmtree(path, ignore_errors=True)
    for directory in path.parents:
        if directory == top or not directory.is_relative_to(top):
            return
        try:
            directory.rmdir()
        except OSError:
            return


def check_owner(path: Path, top: Path) -> None:
    """Refuse a directory that others can write to: what is restored from there runs as we do. Raises ImageUnusable."""
    for directory in (path, *path.parents):
        is_symlink, found = directory.is_symlink(), directory.stat()
        owners = {found.st_uid, directory.lstat().st_uid}
        if not owners <= {0, os.geteuid()}:
            raise ImageUnusable(path, f"{directory} belongs to another user")
        if found.st_mode & FOREIGN_WRITERS and not found.st_mode & stat.S_ISVTX and not is_symlink:
            raise ImageUnusable(path, f"{directory} can be written to by other users: chmod go-w")
        if directory == top:
            return
