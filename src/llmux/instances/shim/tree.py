"""The shim's descendants: finding, signalling and ending them, and removing the directory they leave behind."""

import os
import signal
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

FIRST_KILL_INTERVAL_SECONDS = 0.01
LAST_KILL_INTERVAL_SECONDS = 0.5


class Process(NamedTuple):
    """What links a process to others."""

    parent: int
    session: int


def read_processes() -> dict[int, Process]:
    """All processes on this machine that can be read, by pid."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    return {pid: process for pid in pids if (process := read_process(pid)) is not None}


def read_process(pid: int) -> Process | None:
    """One process; None if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            # After the name, which may contain blanks and parentheses: state, parent, group, session.
            fields = file.read().rpartition(b")")[2].split()
        return Process(int(fields[1]), int(fields[3]))
    except (OSError, IndexError):
        return None


def find_descendants(roots: Iterable[int], processes: Mapping[int, Process]) -> list[int]:
    """The roots and all of their descendants, each once, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found = list(dict.fromkeys(roots))
    known = set(found)
    for pid in found:
        new = [child for child in children.get(pid, ()) if child not in known]
        known.update(new)
        found.extend(new)
    return found


def signal_tree(number: int, root: int | None = None, spared: int | None = None) -> None:
    """Signal all of our descendants whatever their session; with ``root``, a child of ours, only it and its own.

    ``spared`` is a child of ours that is not signalled, with its own descendants.
    """
    processes = read_processes()
    tree = find_descendants([os.getpid() if root is None else root], processes)
    left_out = set() if spared is None else set(find_descendants([spared], processes))
    for pid in tree[1:]:
        if pid in left_out:
            continue
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            # Checked again with the descriptor open: in between, the pid may have passed to a process of somebody else.
            process = read_process(pid)
            if process is not None and process.parent in tree:
                signal.pidfd_send_signal(descriptor, number)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    if root is not None:
        os.kill(root, number)


def end_tree() -> None:
    """Kill our descendants and reap them until none is left."""
    interval_seconds = FIRST_KILL_INTERVAL_SECONDS
    while True:
        signal_tree(signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(interval_seconds)
        interval_seconds = min(2 * interval_seconds, LAST_KILL_INTERVAL_SECONDS)


def remove_directory(path: str | None) -> None:
    """Remove a directory with its contents as far as possible; symbolic links are not followed."""
    if path is None:
        return
    for folder, directories, files in os.walk(path, topdown=False):
        for name in (*directories, *files):
            remove_entry(os.path.join(folder, name))  # noqa: PTH118
    remove_entry(path)


def remove_entry(path: str) -> None:
    """Remove a file or an empty directory if possible."""
    for remove in (os.unlink, os.rmdir):
        try:
            remove(path)
        except OSError:
            continue
