"""The engine's part of /dev/shm: moved into the image after a dump, and copied back before a restore.

criu does not store files of /dev/shm that have a name (``psm_*``, ``sem.*``). For a file that is mapped but already
unlinked it creates a name, ``link_remap.N``, that must exist at the restore. N is a small counter, equal for similar
engines: a second engine can be dumped only if nothing of the first is left in /dev/shm.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from llmux.checkpoints.copying import copy_sparse
from llmux.checkpoints.processes import PROC, open_files

DIRECTORY = Path("/dev/shm")
FOLDER = "shm"
"""The copies within an image."""
REMAPPED = "link_remap."
STAT_BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the file system's block size."""


class NameTaken(Exception):
    """A file of the image cannot be put back because another process uses a file of that name."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is in use by another process")


@contextmanager
def opened_lock() -> Iterator[int]:
    """A descriptor for ``try_lock``; closing it at the end releases the lock.

    One criu at a time may work on a machine because of the names above. The lock is on the directory with those names:
    it reaches exactly as far (containers may share it or not), and needs no file.
    """
    descriptor = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def list_remapped() -> frozenset[str]:
    """Names that criu created, for whatever image."""
    return frozenset(path.name for path in DIRECTORY.glob(f"{REMAPPED}*"))


def find_used_inodes(pids: Iterable[int]) -> frozenset[int]:
    """Inodes of /dev/shm, with or without a name, that the processes have mapped or open."""
    return frozenset(inode for pid in pids for inode in (*_mapped_inodes(pid), *_open_inodes(pid)))


def find_names(inodes: frozenset[int]) -> tuple[str, ...]:
    """Names of these inodes."""
    return tuple(path.name for path, stat in _list_files() if stat.st_ino in inodes)


def find_size(inodes: Iterable[int]) -> int:
    """Allocated bytes of those of the inodes that have a name."""
    wanted = set(inodes)
    sizes = {stat.st_ino: stat.st_blocks * STAT_BLOCK_BYTES for _, stat in _list_files() if stat.st_ino in wanted}
    return sum(sizes.values())


def move_into_image(image: Path, inodes: frozenset[int], remapped_before: frozenset[str]) -> dict[str, str]:
    """Move the engine's files, and those that criu created for it, into the image; raises OSError.

    Returns the file within the image by name in /dev/shm: hard links to one inode share a file.
    """
    folder = image / FOLDER
    folder.mkdir(mode=0o700)
    names: dict[str, str] = {}
    saved: dict[int, str] = {}
    for path, stat in _list_files():
        is_ours = stat.st_ino in inodes or (path.name.startswith(REMAPPED) and path.name not in remapped_before)
        if is_ours and stat.st_ino not in saved:
            copy_sparse(path, folder / path.name)
            saved[stat.st_ino] = path.name
        if is_ours:
            names[path.name] = saved[stat.st_ino]
    remove(names)
    return names


def put_back(image: Path, names: Mapping[str, str]) -> None:
    """Copy the image's files back to /dev/shm; raises OSError, NameTaken.

    Files of these names that no process uses are replaced: a dead engine left them. After a failure none is there.
    """
    placed: list[str] = []
    try:
        remove_unused(names)
        for name in names:
            if os.path.lexists(DIRECTORY / name):
                raise NameTaken(DIRECTORY / name)
        for name, source in names.items():
            if name == source:
                copy_sparse(image / FOLDER / source, DIRECTORY / name)
                placed.append(name)
        for name, source in names.items():
            if name != source:
                os.link(DIRECTORY / source, DIRECTORY / name)
                placed.append(name)
    except BaseException:
        remove(placed)
        raise


def remove(names: Iterable[str]) -> None:
    """Remove files from /dev/shm; no error if they do not exist."""
    for name in names:
        (DIRECTORY / name).unlink(missing_ok=True)


def remove_unused(names: Iterable[str]) -> None:
    """Remove those of the files that no process has mapped or open."""
    existing = {name: (DIRECTORY / name).stat().st_ino for name in names if (DIRECTORY / name).is_file()}
    if existing:
        used = find_used_inodes(psutil.pids())
        remove(name for name, inode in existing.items() if inode not in used)


def _list_files() -> list[tuple[Path, os.stat_result]]:
    files = []
    for path in sorted(DIRECTORY.iterdir()):
        try:
            stat = path.lstat()
        except FileNotFoundError:
            continue
        if path.is_file() and not path.is_symlink():
            files.append((path, stat))
    return files


def _mapped_inodes(pid: int) -> set[int]:
    try:
        lines = (PROC / str(pid) / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    mapped = set()
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(f"{DIRECTORY}/"):
            mapped.add(int(fields[4]))
    return mapped


def _open_inodes(pid: int) -> set[int]:
    opened = set()
    for link, target in open_files(pid):
        if target.startswith(f"{DIRECTORY}/"):
            try:
                opened.add(link.stat().st_ino)
            except OSError:
                continue
    return opened
