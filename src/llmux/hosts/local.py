"""This machine as engines need it: free ports, short temporary directories, open files, memory and processes."""

import hashlib
import random
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import quote

import psutil

from llmux.errors import LlmuxError

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 10_000
"""Well-known services and most development servers listen below."""
HIGHEST_PORT = 65_535
USUAL_EPHEMERAL_PORTS = (32_768, 60_999)
"""Linux's default, for when the range cannot be read."""
EPHEMERAL_PORTS_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
FEWEST_PORTS = 1_000
"""A narrower range is not used while there is another one."""

FILES_MAX = 65_536
RESERVED_FILES = 512
"""Open files for everything but connections of clients and engines: logs, shims, the control server."""
FEWEST_CONNECTIONS = 64

NAME_CHARACTERS = 24
RANDOM_SUFFIX_CHARACTERS = 8
"""``tempfile.mkdtemp`` appends as many."""
SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket on Linux, without the closing NUL."""
LONGEST_SOCKET_NAME_BYTES = 40
"""Engines name their sockets by a UUID (36 characters) at most."""

MIB = 1 << 20
KIB_PER_MIB = 1 << 10


class NoFreePort(LlmuxError):
    """Fewer free ports than engines without a configured one."""

    def __init__(self, wanted: int, ports: range) -> None:
        super().__init__(
            f"no {wanted} free ports between {ports.start} and {ports.stop - 1} on {LOOPBACK}: give the models a port "
            "each in the configuration, or stop what uses them"
        )


def choose_ports(count: int, taken: Collection[int] = ()) -> list[int]:
    """Choose distinct free ports outside the kernel's ephemeral range, and none of ``taken``; raises NoFreePort.

    The kernel may assign an ephemeral port to an outgoing connection while its engine is stopped, and the engine could
    then not start again.
    """
    ports = fixed_ports(read_ephemeral_ports())
    # Start at a random one: two llmux processes that start together should not choose the same ports.
    first = random.randrange(len(ports))
    chosen: list[int] = []
    for offset in range(len(ports)):
        if len(chosen) == count:
            break
        port = ports[(first + offset) % len(ports)]
        if port not in taken and is_free(port):
            chosen.append(port)
    if len(chosen) < count:
        raise NoFreePort(count, ports)
    return chosen


def fixed_ports(ephemeral: tuple[int, int]) -> range:
    """The ports below the ephemeral range, above it if too few are below, or all if too few are outside."""
    below = range(LOWEST_PORT, ephemeral[0])
    if len(below) >= FEWEST_PORTS:
        return below
    above = range(ephemeral[1] + 1, HIGHEST_PORT + 1)
    return above if len(above) >= FEWEST_PORTS else range(LOWEST_PORT, HIGHEST_PORT + 1)


def read_ephemeral_ports(file: Path = EPHEMERAL_PORTS_FILE) -> tuple[int, int]:
    """The first and last port that the kernel assigns to outgoing connections."""
    try:
        first, last = map(int, file.read_text().split())
    except (OSError, ValueError):
        return USUAL_EPHEMERAL_PORTS
    return first, last


def is_free(port: int) -> bool:
    """Whether an engine can listen on the port now."""
    with socket.socket() as probe:
        # Engines set it too: connections of the previous engine in TIME_WAIT do not prevent listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def url_of(host: str, port: int) -> str:
    """The URL at which a program on this machine reaches what listens on ``host``, which may mean all addresses."""
    reachable = {"*": LOOPBACK, "::": "::1"}.get(host, host).replace("%", "%25")
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def create_temporary_directory(model: str, parent: Path | None = None) -> Path:
    """Create a directory for one start of a model's engine, named after the model.

    ``parent`` defaults to the system's temporary directory; ``/tmp`` is used if the path would be too long for Unix
    sockets. The engine's shim removes the directory after the engine's last process has ended. Raises OSError.
    """
    parent = parent or Path(tempfile.gettempdir())
    prefix = f"llmux-{encode_name(model)}-"
    directory_bytes = len(str(parent / prefix).encode()) + RANDOM_SUFFIX_CHARACTERS
    if directory_bytes + 1 + LONGEST_SOCKET_NAME_BYTES > SOCKET_PATH_BYTES:
        parent = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def remove_temporary_directory(directory: Path) -> None:
    """Remove the directory of an engine that was never started; no error if it does not exist."""
    shutil.rmtree(directory, ignore_errors=True)


def encode_name(model: str) -> str:
    """A file name for a model: percent-encoded, and if too long, truncated with a digest that keeps it unique."""
    name = quote(model, safe="", errors="backslashreplace")
    if name in (".", ".."):
        return name.replace(".", "%2E")
    if len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(model.encode(errors="backslashreplace")).hexdigest()[:8]
    start = name[: NAME_CHARACTERS - 9]
    if "%" in start[-2:]:  # do not cut an encoded character in half
        start = start[: start.rindex("%")]
    return f"{start}~{digest}"


def connections_that_fit() -> int:
    """Raise this process's limit on open files as far as allowed; returns how many client connections fit in it.

    Each counts twice, since it may need a connection to an engine as well.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(FEWEST_CONNECTIONS, (files - RESERVED_FILES) // 2)


def available_mib() -> int:
    """Host memory that can be used without swapping."""
    return int(psutil.virtual_memory().available) // MIB


def total_mib() -> int:
    """The machine's host memory."""
    return int(psutil.virtual_memory().total) // MIB


def size_mib(files: Iterable[Path]) -> int:
    """The size of files together; 0 if one of them cannot be read."""
    try:
        return sum(file.stat().st_size for file in files) // MIB
    except OSError:
        return 0


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether a process is a descendant of another one; False if it has ended."""
    try:
        return any(parent.pid == ancestor for parent in psutil.Process(pid).parents())
    except psutil.Error:
        return False


def find_descendants(pid: int) -> list[psutil.Process]:
    """All descendants of a process, parents before their children; empty if there is no such process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def held_mib(processes: Iterable[psutil.Process]) -> int:
    """Host memory that the processes hold together, shared pages counted once. Ended processes hold none."""
    return sum(map(_held_bytes, processes)) // MIB


def resident_mib(processes: Iterable[psutil.Process]) -> int:
    """Host memory that ends with the processes: without the pages of files, which the kernel drops when it needs them.

    What several of them share counts for each, unlike in ``held_mib``; but this is a matter of microseconds, however
    much they hold, and a switch waits for it.
    """
    return sum(_resident_kib(process.pid) for process in processes) // KIB_PER_MIB


def find_living(processes: Iterable[psutil.Process]) -> list[int]:
    """The pids of those that have not ended; a zombie has."""
    return [process.pid for process in processes if _is_living(process)]


def _held_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _resident_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    # CUDA's pinned memory is shared memory.
    return sum(int(size) for size in re.findall(r"^Rss(?:Anon|Shmem):\s*([0-9]+) kB$", status, re.MULTILINE))


def _is_living(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
