"""What an engine needs of this machine: ports of its own, and a short directory for its sockets and temporary files."""

import hashlib
import random
import resource
import shutil
import socket
import tempfile
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from llmux.errors import LlmuxError

LOOPBACK = "127.0.0.1"
LOWEST_PORT = 10_000
HIGHEST_PORT = 65_535
USUAL_EPHEMERAL_PORTS = (32_768, 60_999)
EPHEMERAL_PORTS_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
FEWEST_PORTS = 1_000

FILES_MAX = 65_536
FILES_FOR_THE_REST = 512
FEWEST_CONNECTIONS = 64

NAME_CHARACTERS = 24
SOCKET_PATH_BYTES = 107
LONGEST_SOCKET_NAME_BYTES = 40
"""vLLM names its sockets by a UUID (36 characters)."""


class NoFreePort(LlmuxError):
    """Not as many free ports as engines."""

    def __init__(self, wanted: int, ports: range) -> None:
        super().__init__(
            f"no {wanted} free ports between {ports.start} and {ports.stop - 1} on {LOOPBACK}: give the models a port "
            "each in the configuration, or stop what uses them"
        )


def choose_ports(count: int, taken: Collection[int] = ()) -> list[int]:
    """Choose ports on which nobody listens, and which the kernel gives to no outgoing connection.

    So a port stays free while its engine is stopped and started again. ``taken`` are not chosen. Raises NoFreePort.
    """
    ports = fixed_ports(read_ephemeral_ports())
    # Anywhere in the range: two llmux that start together should not come upon the same ones.
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
    """The ports below the ephemeral ones, or above them where too few are below; all where there are none."""
    below = range(LOWEST_PORT, ephemeral[0])
    if len(below) >= FEWEST_PORTS:
        return below
    above = range(ephemeral[1] + 1, HIGHEST_PORT + 1)
    return above if len(above) >= FEWEST_PORTS else range(LOWEST_PORT, HIGHEST_PORT + 1)


def read_ephemeral_ports(file: Path = EPHEMERAL_PORTS_FILE) -> tuple[int, int]:
    """The first and the last port that the kernel gives to outgoing connections."""
    try:
        first, last = map(int, file.read_text().split())
    except (OSError, ValueError):
        return USUAL_EPHEMERAL_PORTS
    return first, last


def is_free(port: int) -> bool:
    """Whether an engine could listen on the port now."""
    with socket.socket() as probe:
        # As engines do: connections of the last engine that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def create_temporary_directory(model: str, parent: Path | None = None) -> Path:
    """Make a directory for one start of a model's engine, named so that a person can tell whose it is.

    ``parent`` is the system's directory for temporary files, or ``/tmp`` where that is too long for Unix sockets.
    The engine's shim removes it with the engine's last process.
    """
    parent = parent or Path(tempfile.gettempdir())
    prefix = f"llmux-{encode_name(model)}-"
    longest = len(str(parent / prefix).encode()) + 8 + 1 + LONGEST_SOCKET_NAME_BYTES
    if longest > SOCKET_PATH_BYTES:
        parent = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def remove_temporary_directory(directory: Path) -> None:
    """Remove the directory of an engine that was never started; it may be gone already."""
    shutil.rmtree(directory, ignore_errors=True)


def encode_name(model: str) -> str:
    """A short file name for a model: percent-encoded, and a long one cut and told apart by a digest."""
    name = quote(model, safe="", errors="backslashreplace")
    if name in (".", ".."):
        return name.replace(".", "%2E")
    if len(name) <= NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(model.encode(errors="backslashreplace")).hexdigest()[:8]
    start = name[: NAME_CHARACTERS - 9]
    if "%" in start[-2:]:
        start = start[: start.rindex("%")]
    return f"{start}~{digest}"


def connections_that_fit() -> int:
    """Raise this process's limit of open files as far as it goes, and say how many clients fit below it.

    Each may need a connection to an engine as well; some files are left for everything else.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(FEWEST_CONNECTIONS, (files - FILES_FOR_THE_REST) // 2)
