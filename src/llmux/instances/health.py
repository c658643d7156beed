"""Whether an engine is healthy, and whether the process that listens on its port is really the engine."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum, auto

import psutil

from llmux.engines.base import HEALTH_PATH
from llmux.engines.questions import ONE_TOKEN, ask
from llmux.errors import ControlCallFailed
from llmux.instances.control_calls import EngineEndpoints
from llmux.os_errors import is_own_shortage

POLL_SECONDS = 0.1
PROBE_TIMEOUT_SECONDS = 5.0
REPORT_SECONDS = 10.0
"""Between two lines in the log about a start that takes long."""


class Health(Enum):
    """The result of a request to an engine's ``health_path``."""

    ALIVE = auto()
    DEAD = auto()
    SILENT = auto()
    """No response in time, or the request could not be sent: the engine may be busy or hang, or be dead."""


async def check_health(endpoints: EngineEndpoints, timeout_seconds: float, path: str = HEALTH_PATH) -> Health:
    """Request the engine's path for that once."""
    try:
        await endpoints.get_apart(path, timeout_seconds)
    except ControlCallFailed as failure:
        return health_after(failure)
    return Health.ALIVE


def health_after(failure: ControlCallFailed) -> Health:
    """What a failed request to it says of an engine."""
    return Health.SILENT if failure.is_timeout or is_own_shortage(failure.__cause__) else Health.DEAD


async def generates(endpoints: EngineEndpoints, model: str, limit_seconds: float) -> bool:
    """Whether the engine answers a question for one token in time; any failure but lateness counts as an answer.

    ``model``: the name by which the engine knows it.
    """
    try:
        await ask(endpoints, ONE_TOKEN, model, limit_seconds)
    except ControlCallFailed as failure:
        return not failure.is_timeout
    return True


async def wait_until_healthy(
    endpoints: EngineEndpoints, report: Callable[[float], None] | None = None, path: str = HEALTH_PATH
) -> None:
    """Poll until the engine is alive; the caller limits the time. ``report`` is called as by ``poll``."""

    async def is_alive() -> bool:
        return await check_health(endpoints, PROBE_TIMEOUT_SECONDS, path) is Health.ALIVE

    await poll(is_alive, report)


async def poll(reached: Callable[[], Awaitable[bool]], report: Callable[[float], None] | None = None) -> None:
    """Ask until it is so; ``report`` is called every ``REPORT_SECONDS`` with the seconds that have passed."""
    now = asyncio.get_running_loop().time
    began_at = now()
    report_at = began_at + REPORT_SECONDS
    while not await reached():
        if report is not None and now() >= report_at:
            report_at = now() + REPORT_SECONDS
            report(now() - began_at)
        await asyncio.sleep(POLL_SECONDS)


def listens(root_pid: int, port: int) -> bool:
    """Whether the process or one of its descendants listens on the port."""
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
