"""The part of an engine that lies in /dev/shm: taken into the image after a dump, put back before a restore.

criu leaves there, under ``link_remap.N``, what an engine has mapped but unlinked, and does not put what still has a
name (``psm_*``, ``sem.*``) into the image at all. N is the same for every engine of a kind, so that two images can only
be beside each other when neither has anything left there.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from llmux.checkpoints.copying import copy_sparse
from llmux.checkpoints.processes import PROC

DIRECTORY = Path("/dev/shm")
FOLDER = "shm"
"""Of an image: the files that belong into /dev/shm."""
REMAPPED = "link_remap."


class NameTaken(Exception):
    """A file that some process uses is where one of the image's has to be."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is in use by another process")


def list_remapped() -> frozenset[str]:
    """The files that criu has left, for whatever image."""
    return frozenset(path.name for path in DIRECTORY.glob(f"{REMAPPED}*"))


def find_used_inodes(pids: Iterable[int]) -> frozenset[int]:
    """The files of /dev/shm, named or not, that the processes have mapped or open."""
    return frozenset(inode for pid in pids for inode in (*_mapped(pid), *_open(pid)))


def find_names(inodes: frozenset[int]) -> tuple[str, ...]:
    """The names under which the files are there."""
    return tuple(path.name for path, stat in _files() if stat.st_ino in inodes)


def find_size(inodes: Iterable[int]) -> int:
    """How many bytes of memory those of the files take that have a name."""
    wanted = set(inodes)
    sizes = {stat.st_ino: stat.st_blocks * 512 for _, stat in _files() if stat.st_ino in wanted}
    return sum(sizes.values())


def take_into_image(image: Path, inodes: frozenset[int], remapped_before: frozenset[str]) -> dict[str, str]:
    """Move what the dumped engine used, and what criu left for it, into the image; raises OSError.

    Returns each name with the name of the file in the image, which several names may share.
    """
    folder = image / FOLDER
    folder.mkdir(mode=0o700)
    names: dict[str, str] = {}
    saved: dict[int, str] = {}
    for path, stat in _files():
        is_ours = stat.st_ino in inodes or (path.name.startswith(REMAPPED) and path.name not in remapped_before)
        if is_ours and stat.st_ino not in saved:
            copy_sparse(path, folder / path.name)
            saved[stat.st_ino] = path.name
        if is_ours:
            names[path.name] = saved[stat.st_ino]
    remove(names)
    return names


def put_back(image: Path, names: Mapping[str, str]) -> None:
    """Copy the image's files to where its engine will look for them; raises OSError, NameTaken.

    What a dead engine has left under such a name is replaced. After a failure nothing is there that was not before.
    """
    placed: list[str] = []
    try:
        _retry_after_oom(names)
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
    """Remove files of /dev/shm, as far as they are there."""
    for name in names:
        (DIRECTORY / name).unlink(missing_ok=True)


def remove_unused(names: Iterable[str]) -> None:
    """Remove those of the files that no process has mapped or open."""
    there = {name: (DIRECTORY / name).stat().st_ino for name in names if (DIRECTORY / name).is_file()}
    if there:
        used = find_used_inodes(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
        remove(name for name, inode in there.items() if inode not in used)


def has_room(names: Mapping[str, str], image: Path) -> bool:
    """Whether the files of the image fit into /dev/shm."""
    size = sum((image / FOLDER / source).stat().st_blocks * 512 for source in set(names.values()))
    return shutil.disk_usage(DIRECTORY).free >= size


def _retry_after_oom(names: Iterable[str]) -> None:
    remove_unused(names)
    for name in names:
        if os.path.lexists(DIRECTORY / name):
            raise NameTaken(DIRECTORY / name)


def _files() -> list[tuple[Path, os.stat_result]]:
    files = []
    for path in sorted(DIRECTORY.iterdir()):
        try:
            stat = path.lstat()
        except FileNotFoundError:
            continue
        if path.is_file() and not path.is_symlink():
            files.append((path, stat))
    return files


def _mapped(pid: int) -> set[int]:
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


def _open(pid: int) -> set[int]:
    directory = PROC / str(pid) / "fd"
    opened = set()
    try:
        names = os.listdir(directory)  # noqa: PTH208
    except OSError:
        return set()
    for name in names:
        try:
            if str((directory / name).readlink()).startswith(f"{DIRECTORY}/"):
                opened.add((directory / name).stat().st_ino)
        except OSError:
            continue
    return opened
