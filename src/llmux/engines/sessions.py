"""The processes of an engine's session, found and killed without its shim: for when the shim itself has been killed."""

import asyncio
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path


def find_living(session: int) -> list[int]:
    """Every process of the session, and every descendant of one (which may have left it), that has not ended."""
    living = _open_living(session)
    for descriptor in living.values():
        os.close(descriptor)
    return sorted(living)


def kill_session(session: int, on_gone: Callable[[], None]) -> None:
    """Kill all of the session and call ``on_gone``, at once or later on the running loop, when nobody is left."""
    living = _open_living(session)
    if not living:
        on_gone()
        return
    for descriptor in living.values():
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    loop = asyncio.get_running_loop()
    waiting = set(living.values())

    def ended(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        waiting.discard(descriptor)
        if not waiting:
            kill_session(session, on_gone)

    for descriptor in living.values():
        loop.add_reader(descriptor, ended, descriptor)


def _open_living(session: int) -> dict[int, int]:
    """A pid descriptor of each; the caller closes them."""
    opened: dict[int, int] = {}
    for pid in _find_session(session):
        try:
            opened[pid] = os.pidfd_open(pid)
        except OSError:
            continue
    # Looked up anew with the descriptors in hand: a number may by now be a stranger's.
    still = _find_session(session)
    for pid, descriptor in list(opened.items()):
        if pid not in still or _has_ended(descriptor):
            os.close(opened.pop(pid))
    return opened


def _find_session(session: int) -> set[int]:
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read_stat(entry)) is not None:
            pid = int(entry.name)
            parents[pid], its_session = stat
            if its_session == session:
                found.add(pid)
    while descendants := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= descendants
    return found


def _read_stat(entry: Path) -> tuple[int, int] | None:
    try:
        fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[1]), int(fields[3])
    except (OSError, IndexError):
        return None


def _has_ended(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
