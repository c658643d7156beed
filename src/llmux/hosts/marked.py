"""Processes that have a variable of ours in their environment: it is inherited, whatever becomes of their parents."""

import os
import signal
import time
from pathlib import Path

PROC = Path("/proc")
# How long to wait for a process in the middle of exec, which on a busy machine may have lost its core there.
EXEC_SECONDS = 1.0
EXEC_POLL_SECONDS = 0.001


def find_marked(variable: str, value: str) -> list[int]:
    """The processes of this machine that were started with ``variable=value``, as far as they may be read.

    Those of other users are not found, except by root. Blocks for some milliseconds.
    """
    marker = f"{variable}={value}".encode()
    pids = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    return [pid for pid in pids if marker in _environment_of(pid)]


def mark_of(pid: int, variable: str) -> str | None:
    """The value of the variable that a process was started with; None without one, or where it may not be read."""
    name = f"{variable}=".encode()
    found = (entry.removeprefix(name) for entry in _environment_of(pid) if entry.startswith(name))
    return next((value.decode(errors="replace") for value in found), None)


def kill_marked(variable: str, value: str) -> list[int]:
    """Kill them, and return those that were found; what they start meanwhile is found the next time."""
    marker, found = f"{variable}={value}".encode(), find_marked(variable, value)
    for pid in found:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            # Looked at again with the descriptor open: the pid may have passed to a process of somebody else.
            if marker in _environment_of(pid):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return found


def _environment_of(pid: int) -> list[bytes]:
    """The variables that a process was started with; of one that has ended, or may not be read, there are none."""
    environment = PROC / str(pid) / "environ"
    try:
        if not (content := environment.read_bytes()):
            _wait_for_exec(pid)
            content = environment.read_bytes()
    except OSError:
        return []
    return content.split(b"\0")


def _wait_for_exec(pid: int) -> None:
    """Wait until a process is not in the middle of exec, where the kernel shows its environment as empty."""
    give_up_at = time.monotonic() + EXEC_SECONDS
    while _is_in_exec(pid) and time.monotonic() < give_up_at:
        time.sleep(EXEC_POLL_SECONDS)


def _is_in_exec(pid: int) -> bool:
    """Whether a process has its new memory, but not yet its new environment.

    By the fields of ``/proc/PID/stat`` (proc_pid_stat(5)): a kernel thread, or a process that has ended, has no memory
    (``vsize``), and one that was started without any variable has an end of its environment (``env_end``).
    """
    # The second field, the program's name in parentheses, may contain blanks and parentheses.
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    virtual_bytes, environment_end = int(fields[23 - 3]), int(fields[51 - 3])
    return virtual_bytes > 0 and environment_end == 0
