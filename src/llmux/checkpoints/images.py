"""Images on disk: private directories that are either complete or marked as unfinished."""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from llmux.checkpoints import firewall, shared_memory
from llmux.checkpoints.manifest import NAME as MANIFEST_NAME
from llmux.checkpoints.manifest import Manifest, boot_id, read_manifest, write_manifest
from llmux.errors import ImageUnusable

CLEAN = "images"
FROZEN = "frozen"
"""For images with requests in flight."""
NEW = ".new"
"""Suffix of the directory in which an image is being built."""
OLD = ".old"
"""Suffix of an image that is being replaced."""
DOWNLOAD = ".download"
"""Suffix of the directory into which an image is being downloaded. It is locked while that goes on."""
SUFFIXES = ("", NEW, OLD, DOWNLOAD)
RESERVED = frozenset({"", ".", "..", *(name + suffix for name in (CLEAN, FROZEN) for suffix in SUFFIXES)})
DUMP_LOG = "dump.log"
START_NOTE = "begun.json"
"""Notes what was in /dev/shm when a dump began, for cleaning up after a killed llmux."""
CLOCK_SLACK_SECONDS = 1.0
"""Between the time of criu's log and those of the files that it created before."""
FOREIGN_WRITERS = stat.S_IWGRP | stat.S_IWOTH


def image_path(images_directory: Path, model: str, *, frozen: bool) -> Path:
    """The directory of a model's image; a ``/`` in the name nests directories.

    Raises ImageUnusable if the name cannot be a directory's.
    """
    parts = model.split("/")
    if wrong := sorted(RESERVED.intersection(parts)):
        raise ImageUnusable(
            images_directory,
            f"the model's name {model!r} has the part {wrong[0]!r}, which cannot be a directory's name",
        )
    return images_directory.joinpath(*parts, FROZEN if frozen else CLEAN)


def new_path(path: Path) -> Path:
    """Where the image is built before it replaces the one at its path."""
    return path.with_name(path.name + NEW)


def begin(new: Path, top: Path) -> None:
    """Create the directory in which an image is built, deleting an unfinished one; raises OSError, ImageUnusable."""
    _make_parents(new, top)
    delete_unfinished(new)
    new.mkdir(mode=0o700)


def _make_parents(new: Path, top: Path) -> None:
    for directory in reversed((new.parent, *new.parent.parents)):
        if directory.is_relative_to(top) and not directory.exists():
            directory.mkdir(mode=0o700, parents=True)
    check_owner(new.parent, top)


@contextmanager
def downloading(path: Path, top: Path) -> Iterator[Path]:
    """The empty directory for a download of the image of this path; if it is still there at the end, it is deleted.

    Raises OSError, ImageUnusable. It is locked, so that ``delete_download`` can tell one that a killed llmux left.
    """
    new = path.with_name(path.name + DOWNLOAD)
    if not path.is_relative_to(top):
        new.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_parents(new, top)
    if not delete_download(new):
        raise ImageUnusable(path, "another llmux is downloading it")
    new.mkdir(mode=0o700)
    descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield new
    finally:
        os.close(descriptor)
        remove_directory(new, top)


def delete_download(new: Path) -> bool:
    """Delete what was downloaded so far, unless that still goes on; whether it is gone. Raises OSError."""
    try:
        descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        shutil.rmtree(new)
        return True
    finally:
        os.close(descriptor)


def note_start(new: Path, remapped: frozenset[str], engine_files: Iterable[str]) -> None:
    """Note criu's names in /dev/shm before the dump, and the engine's own; raises OSError."""
    (new / START_NOTE).write_text(json.dumps({"remapped": sorted(remapped), "own": sorted(engine_files)}))


def finish(new: Path) -> Path:
    """Move a complete image, manifest included, to its path, replacing an older one; raises OSError."""
    (new / START_NOTE).unlink(missing_ok=True)
    path = new.with_name(new.name.removesuffix(NEW))
    replace_image(new, path)
    return path


def replace_image(new: Path, path: Path) -> None:
    """Move the complete image to its path; raises OSError. A kill in the middle leaves the old one, or none."""
    old = path.with_name(path.name + OLD)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Return when the whole image is on the disk; raises OSError."""
    for entry in (*path.rglob("*"), path, path.parent):
        if not entry.is_symlink() and (entry.is_file() or entry.is_dir()):
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def mark_durable(path: Path, manifest: Manifest) -> None:
    """Record that the image was synced, unless another one has replaced it since; raises OSError, ImageUnusable."""
    if read_manifest(path) == manifest:
        write_manifest(path, replace(manifest, is_durable=True))
        sync(path)


def invalidate(path: Path) -> None:
    """Make sure that nothing is restored from the image any more; unlike deleting, this takes no time."""
    with suppress(NotADirectoryError):  # a file is in the image's place, or above it
        (path / MANIFEST_NAME).unlink(missing_ok=True)


def remove_directory(path: Path, top: Path) -> None:
    """Remove an image's directory, manifest first, and the directories above it that are then empty."""
    invalidate(path)
    shutil.rmtree(path, ignore_errors=True)
    for directory in path.parents:
        if directory == top or not directory.is_relative_to(top):
            return
        try:
            directory.rmdir()
        except OSError:
            return


def delete(path: Path, top: Path) -> None:
    """Delete an image, and its files in /dev/shm and its firewall tables; raises OSError."""
    try:
        manifest = read_manifest(path, verify=False)
    except ImageUnusable:
        manifest = None
    remove_directory(path, top)
    if manifest is not None:
        shared_memory.remove_unused(manifest.shared_memory)
        if manifest.boot_id == boot_id():  # tables do not survive a boot, and their names may be in use again
            firewall.remove_tables(manifest.firewall_tables)


def delete_all_unfinished(top: Path) -> None:
    """Delete images that a killed llmux left unfinished; none may be under construction. Raises OSError."""
    for folder, directories, _ in os.walk(top):
        for name in directories.copy():
            if name.endswith(NEW):
                directories.remove(name)
                delete_unfinished(Path(folder) / name)
            elif name.endswith(DOWNLOAD):
                directories.remove(name)
                delete_download(Path(folder) / name)


def delete_unfinished(new: Path) -> None:
    """Delete an unfinished image, and what its criu left in /dev/shm and the firewall; raises OSError."""
    if not new.is_symlink() and new.is_dir():
        firewall.remove_tables(firewall.find_tables(new / DUMP_LOG))
        shared_memory.remove_unused(_find_leftovers(new))
        shutil.rmtree(new, ignore_errors=True)


def check_owner(path: Path, top: Path) -> None:
    """Refuse an image that other users can modify, since it is restored with our rights; raises ImageUnusable."""
    for directory in (path, *path.parents):
        is_symlink, found = directory.is_symlink(), directory.stat()
        owners = {found.st_uid, directory.lstat().st_uid}
        if not owners <= {0, os.geteuid()}:
            raise ImageUnusable(path, f"{directory} belongs to another user")
        if found.st_mode & FOREIGN_WRITERS and not found.st_mode & stat.S_ISVTX and not is_symlink:
            raise ImageUnusable(path, f"{directory} can be written to by other users: chmod go-w")
        if directory == top:
            return


def _find_leftovers(new: Path) -> list[str]:
    """The engine's names in /dev/shm, and those of criu's names that were created during its dump."""
    try:
        note = json.loads((new / START_NOTE).read_text())
        before, own = set(note["remapped"]), list(note["own"])
        began = (new / START_NOTE).stat().st_mtime
        ended = (new / DUMP_LOG).stat().st_mtime
    except (OSError, ValueError, LookupError, TypeError):
        return []
    created = {
        name: (shared_memory.DIRECTORY / name).stat().st_ctime for name in shared_memory.list_remapped() - before
    }
    return own + [
        name for name, at in created.items() if began - CLOCK_SLACK_SECONDS <= at <= ended + CLOCK_SLACK_SECONDS
    ]
