"""An engine's processes as criu sees them: what a dump includes, and which ids a restore needs."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmux.hosts.local import find_descendants

PROC = Path("/proc")
KIB = 1024
UNDUMPABLE = re.compile(
    r"anon_inode:\[(io_uring|perf_event|fanotify|kvm-\w+)\]|anon_inode:(bpf-\w+|kvm-\w+)|/dev/infiniband/\w+"
)
"""Open files that criu cannot dump, as /proc/PID/fd shows them."""
GPU_DEVICE = re.compile(r"/dev/nvidia\d+")


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """The processes of an engine at one moment."""

    pids: tuple[int, ...]
    """The root first."""
    tids: tuple[int, ...]
    """The ids of all threads."""
    groups: tuple[int, ...]
    """The ids of their process groups and sessions."""
    memory_bytes: int
    """Private and shared memory. Pages of mapped files are left out: they are not part of an image."""
    undumpable: tuple[str, ...]
    """Open files that criu cannot dump, each with its process."""
    gpu_processes: int
    """How many processes have a GPU open."""


def inspect_tree(root: int) -> ProcessTree:
    """Inspect a process and its descendants. Processes that end meanwhile contribute nothing."""
    pids = (root, *(process.pid for process in find_descendants(root)))
    targets = {pid: tuple(target for _, target in open_files(pid)) for pid in pids}
    return ProcessTree(
        pids=pids,
        tids=tuple(sorted({tid for pid in pids for tid in _ids_in(PROC / str(pid) / "task")})),
        groups=tuple(sorted({number for pid in pids for number in _groups_of(pid)})),
        memory_bytes=sum(map(_read_memory, pids)),
        undumpable=tuple(
            f"{found[0]} of process {pid} ({read_name(pid)})"
            for pid in pids
            for found in filter(None, map(UNDUMPABLE.match, targets[pid]))
        ),
        gpu_processes=sum(any(map(GPU_DEVICE.match, targets[pid])) for pid in pids),
    )


def find_taken(ids: Iterable[int]) -> dict[int, str]:
    """Those of the ids that a process, thread, process group or session has, with the name of its process.

    criu cannot restore a process with such an id, not even with that of a zombie.
    """
    wanted = set(ids)
    # Threads have directories in /proc, though it does not list them.
    taken = {number: read_name(number) for number in wanted if (PROC / str(number)).exists()}
    for pid in psutil.pids():
        for number in _groups_of(pid):
            if number in wanted:
                taken.setdefault(number, read_name(pid))
    return taken


def open_files(pid: int) -> Iterator[tuple[Path, str]]:
    """The process's descriptors as links in /proc, with their targets; those that cannot be read are left out."""
    directory = PROC / str(pid) / "fd"
    for descriptor in _ids_in(directory):
        link = directory / str(descriptor)
        try:
            yield link, str(link.readlink())
        except OSError:
            continue


def read_name(pid: int) -> str:
    """The name of a process or thread, as ``ps`` shows it."""
    try:
        return (PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "unknown"


def _ids_in(directory: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(directory) if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []


def _groups_of(pid: int) -> tuple[int, ...]:
    """The ids of the process's group and session; empty if it has ended."""
    try:
        return os.getpgid(pid), os.getsid(pid)
    except OSError:
        return ()


def _read_memory(pid: int) -> int:
    try:
        status = (PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return 0
    found: list[str] = re.findall(r"^(?:RssAnon|RssShmem|VmSwap):\s*(\d+) kB", status, re.MULTILINE)
    return sum(map(int, found)) * KIB
