"""The processes of an engine: what criu will have to dump, and which numbers are taken that it will need again."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
KIB = 1024
IO_URING = "anon_inode:[io_uring]"
UNDUMPABLE = re.compile(
    r"anon_inode:\[(io_uring|perf_event|fanotify|kvm-\w+)\]|anon_inode:(bpf-\w+|kvm-\w+)|/dev/infiniband/\w+"
)
"""What criu has no way to put into an image."""
GPU = re.compile(r"/dev/nvidia\d+")


@dataclass(frozen=True, slots=True)
class Tree:
    """The processes of an engine as they are now."""

    pids: tuple[int, ...]
    """The root first."""
    tids: tuple[int, ...]
    groups: tuple[int, ...]
    """The numbers of their groups and sessions."""
    memory_bytes: int
    """What is theirs and in memory; files that they only map are not part of an image."""
    undumpable: tuple[str, ...]
    """Open files that criu cannot dump, with who has them."""
    gpu_processes: int
    """How many of them have a GPU open."""


def inspect_tree(root: int) -> Tree:
    """Look at a process and its descendants."""
    pids = tuple(find_tree(root))
    tids = {tid for pid in pids for tid in _numbers_in(PROC / str(pid) / "task")}
    stats = [stat for pid in pids if (stat := _read_stat(pid)) is not None]
    links = {pid: tuple(read_links(pid)) for pid in pids}
    return Tree(
        pids=pids,
        tids=tuple(sorted(tids)),
        groups=tuple(sorted({number for stat in stats for number in stat[1:] if number})),
        memory_bytes=sum(map(_read_memory, pids)),
        undumpable=tuple(
            f"{found[0]} of process {pid} ({read_name(pid)})"
            for pid, targets in links.items()
            for found in filter(None, map(UNDUMPABLE.match, targets))
        ),
        gpu_processes=sum(any(map(GPU.match, targets)) for targets in links.values()),
    )


def find_tree(root: int) -> list[int]:
    """A process and its descendants, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid in _numbers_in(PROC):
        if (stat := _read_stat(pid)) is not None:
            children.setdefault(stat[0], []).append(pid)
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, ()))
    return tree


def find_taken(numbers: Iterable[int]) -> dict[int, str]:
    """Those of the numbers that some process, thread, group or session has, with the name of who has it.

    criu can give none of them to a process that it restores, be it a zombie's.
    """
    wanted = set(numbers)
    taken = {number: read_name(number) for number in wanted if (PROC / str(number)).exists()}
    for pid in _numbers_in(PROC):
        stat = _read_stat(pid)
        for number in stat[1:] if stat is not None else ():
            if number in wanted:
                taken.setdefault(number, read_name(pid))
    return taken


def read_links(pid: int) -> Iterator[str]:
    """What the process's descriptors point to, as far as it may be read."""
    directory = PROC / str(pid) / "fd"
    for descriptor in _numbers_in(directory):
        try:
            yield str((directory / str(descriptor)).readlink())
        except OSError:
            continue


def read_name(pid: int) -> str:
    """The name of a process or thread, as ``ps`` shows it."""
    try:
        return (PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "unknown"


def _numbers_in(directory: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(directory) if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []


def _read_stat(pid: int) -> tuple[int, int, int] | None:
    """Parent, group and session."""
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[1]), int(fields[2]), int(fields[3])
    except (OSError, IndexError):
        return None


def _read_memory(pid: int) -> int:
    try:
        status = (PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return 0
    found: list[str] = re.findall(r"^(?:RssAnon|RssShmem|VmSwap):\s*(\d+) kB", status, re.MULTILINE)
    return sum(map(int, found)) * KIB
