"""Whether an engine lives, and whether it is really ours that listens."""

import asyncio
import errno
from enum import Enum, auto

import psutil

from llmux.engines.control_calls import ControlCallFailed, EngineEndpoints

POLL_SECONDS = 0.1
PROBE_TIMEOUT_SECONDS = 5.0
OWN_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
"""Failures to connect that are llmux's own and say nothing of the engine."""


class Health(Enum):
    """What ``/health`` says."""

    ALIVE = auto()
    DEAD = auto()
    SILENT = auto()
    """No answer in time, or nobody could ask: busy or hanging, not known to be dead."""


async def check_health(endpoints: EngineEndpoints, timeout_seconds: float) -> Health:
    """Ask once."""
    try:
        await endpoints.get("/health", timeout_seconds)
    except ControlCallFailed as failure:
        is_own_fault = getattr(failure.__cause__, "errno", None) in OWN_LACKS
        return Health.SILENT if failure.is_timeout or is_own_fault else Health.DEAD
    return Health.ALIVE


async def wait_until_healthy(endpoints: EngineEndpoints) -> None:
    """Ask every 100 ms until the answer is yes; the caller bounds the time."""
    while await check_health(endpoints, PROBE_TIMEOUT_SECONDS) is not Health.ALIVE:  # noqa: ASYNC110 -- no event to wait on
        await asyncio.sleep(POLL_SECONDS)


def listens(root_pid: int, port: int) -> bool:
    """Whether the process or one of its descendants is the one that listens on the port."""
    try:
        root = psutil.Process(root_pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    return any(_listens_itself(process, port) for process in family)


def _listens_itself(process: psutil.Process, port: int) -> bool:
    try:
        connections = process.net_connections(kind="tcp")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    return any(connection.status == psutil.CONN_LISTEN and connection.laddr.port == port for connection in connections)
