"""The shim's descendants: finding, signalling and ending them, and the directory they leave behind."""

import os
import signal
import time

FIRST_KILL_INTERVAL_SECONDS = 0.01
LAST_KILL_INTERVAL_SECONDS = 0.5


def signal_tree(number: int, root: int | None = None) -> None:
    """Signal every descendant (of a child of ours: that child too), whatever its session, and nobody else."""
    tree = find_tree(os.getpid() if root is None else root)
    for pid in tree[1:]:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            # Asked anew with the descriptor in hand: the number may by now be a stranger's.
            if parent_of(pid) in tree:
                signal.pidfd_send_signal(descriptor, number)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    if root is not None:
        os.kill(root, number)


def find_tree(root: int) -> list[int]:
    """A process and its descendants, parents before their children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and (parent := parent_of(int(name))) is not None:
            children.setdefault(parent, []).append(int(name))
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, ()))
    return tree


def parent_of(pid: int) -> int | None:
    """The parent of a process that is there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def end_tree() -> None:
    """Kill our descendants and wait until there is none."""
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
    """Remove a directory and all that is in it, as far as possible; symbolic links are not followed."""
    if path is None:
        return
    for folder, directories, files in os.walk(path, topdown=False):
        for name in (*directories, *files):
            remove_entry(os.path.join(folder, name))  # noqa: PTH118
    remove_entry(path)


def remove_entry(path: str) -> None:
    """Remove a file or an empty directory, if it can be."""
    for remove in (os.unlink, os.rmdir):
        try:
            remove(path)
        except OSError:
            continue
