"""Finds and kills an engine's session without its shim, for when the shim itself was killed or hangs."""

import asyncio
import os
import select
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress

from llmux.instances.shim.tree import find_descendants, read_processes


def find_living(session: int) -> list[int]:
    """Every living process of the session, and every descendant of one, which may have left the session."""
    living = _open_living(session)
    for descriptor in living.values():
        os.close(descriptor)
    return sorted(living)


def kill_session(session: int, on_gone: Callable[[], None]) -> None:
    """Kill the session with all descendants; when all are gone, possibly before this returns, call ``on_gone``."""
    living = _open_living(session)
    if not living:
        on_gone()
        return
    _kill(living.values())
    loop = asyncio.get_running_loop()
    waiting = set(living.values())

    def on_exit(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        waiting.discard(descriptor)
        if not waiting:
            # Processes that were forked meanwhile.
            kill_session(session, on_gone)

    for descriptor in living.values():
        loop.add_reader(descriptor, on_exit, descriptor)


def kill_session_once(session: int) -> None:
    """Kill what is there of the session and its descendants now; on return they have not ended yet."""
    living = _open_living(session)
    _kill(living.values())
    for descriptor in living.values():
        os.close(descriptor)


def _kill(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        # It may have ended and been reaped meanwhile, or have become another user's.
        with suppress(OSError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def _open_living(session: int) -> dict[int, int]:
    """The pids with a descriptor of each, which the caller closes."""
    opened: dict[int, int] = {}
    for pid in _find_session(session):
        try:
            opened[pid] = os.pidfd_open(pid)
        except OSError:
            continue
    # Checked again with the descriptors open: in between, a pid may have passed to a process of somebody else.
    still_there = _find_session(session)
    for pid, descriptor in list(opened.items()):
        if pid not in still_there or _has_ended(descriptor):
            os.close(opened.pop(pid))
    return opened


def _find_session(session: int) -> list[int]:
    processes = read_processes()
    return find_descendants([pid for pid, process in processes.items() if process.session == session], processes)


def _has_ended(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
