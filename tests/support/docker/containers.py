"""Containers that are processes: in place of namespaces an address of their own on the loopback, and a mark."""

import asyncio
import io
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support.docker.words import DockerError

ANY_ADDRESS = ("0.0.0.0", "::", "")
IGNORED_BY_PID_1 = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""The kernel spares the first process of a container signals for which it has no handler."""
NO_DATE = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Image:
    """What the name of an image stands for."""

    entrypoint: tuple[str, ...]
    host_flag: str | None = None
    """The program's flag for the address to listen on; without it in the arguments, it listens on all addresses."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Published:
    """One ``-p``; port 0 on the host is any free one."""

    host: str
    host_port: int
    port: int

    @classmethod
    def parse(cls, text: str) -> "Published":
        """Read ``[[HOST:]PORT:]PORT[/tcp]``; raises DockerError."""
        *rest, port = text.removesuffix("/tcp").split(":")
        try:
            host_port = int(rest[-1]) if rest and rest[-1] else 0
            return cls(":".join(rest[:-1]) or "0.0.0.0", host_port, int(port))
        except ValueError:
            raise DockerError(f"docker: invalid publish opts format {text}", 125) from None


@dataclass(slots=True, eq=False)
class Container:
    """One container, from its creation to its removal."""

    name: str
    image_name: str
    words: Sequence[str]
    environment: Mapping[str, str]
    address: str
    published: tuple[Published, ...]
    labels: Mapping[str, str]
    auto_remove: bool
    has_init: bool
    host_network: bool
    stop_signal: int
    stop_seconds: float
    identifier: str = field(default_factory=lambda: secrets.token_hex(32))
    status: str = "created"
    exit_code: int = 0
    started_at: str = NO_DATE
    finished_at: str = NO_DATE
    process: asyncio.subprocess.Process | None = None
    listeners: list[asyncio.Server] = field(default_factory=list)
    watchers: set[Callable[[str, str], None]] = field(default_factory=set)
    """Called with ``out`` or ``err`` and a piece of output; the attached clients."""
    _outputs: dict[str, io.FileIO] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    removed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None and self.running else 0

    async def start(self) -> None:
        """Publish the ports and start the process; raises DockerError. Call ``run_to_end`` next."""
        for published in () if self.host_network else self.published:
            await self._publish(published)
        # Not asyncio's pipes: with those, its wait() would wait for all processes that have inherited them.
        pipes = {kind: os.pipe() for kind in ("out", "err")}
        marked = {"PATH": os.environ.get("PATH", ""), **self.environment, "HOSTNAME": self.identifier[:12]}
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipes["out"][1],
                stderr=pipes["err"][1],
                env=marked,
                cwd="/",
                start_new_session=True,
                preexec_fn=None if self.has_init else _be_pid_1,
            )
        except OSError as error:
            self._unpublish()
            for read_end, _ in pipes.values():
                os.close(read_end)
            what = f'exec: "{self.words[0]}": executable file not found in $PATH: unknown'
            reason = f"failed to create task for container: {what}"
            raise DockerError(f"docker: Error response from daemon: {reason}", 127) from error
        finally:
            for _, write_end in pipes.values():
                os.close(write_end)
        self._outputs = {kind: os.fdopen(read_end, "rb", 0) for kind, (read_end, _) in pipes.items()}
        self.status, self.started_at = "running", _now()

    async def run_to_end(self) -> None:
        """Pass its output on until its first process ends; then all of its processes are killed, as by the kernel."""
        assert self.process is not None
        async with asyncio.TaskGroup() as tasks:
            for kind, output in self._outputs.items():
                tasks.create_task(self._pass_on(kind, output))
            code = await self.process.wait()
            for pid in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._unpublish()
        self.exit_code = code if code >= 0 else 128 - code
        self.status, self.finished_at = "exited", _now()
        self.ended.set()

    def signal(self, number: int) -> None:
        """Send a signal to the first process only."""
        if self.process is not None and self.running:
            # Not the process's own send_signal: it reaps a process that has just ended, whose exit code is then lost.
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def stop(self, seconds: float | None, number: int | None) -> None:
        """Ask it to end; kill it if it has not after some seconds."""
        if not self.running:
            return
        self.signal(number or self.stop_signal)
        try:
            await asyncio.wait_for(self.ended.wait(), self.stop_seconds if seconds is None else seconds)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.ended.wait()

    def document(self) -> dict[str, Any]:
        """As ``docker inspect`` shows it."""
        shown = [] if self.host_network else self.published
        state = {
            "Status": self.status,
            "Running": self.running,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": self.pid,
            "ExitCode": self.exit_code,
            "Error": "",
            "StartedAt": self.started_at,
            "FinishedAt": self.finished_at,
        }
        return {
            "Id": self.identifier,
            "Name": f"/{self.name}",
            "State": state,
            "Config": {"Image": self.image_name, "Labels": dict(self.labels), "Hostname": self.identifier[:12]},
            "HostConfig": {"AutoRemove": self.auto_remove, "NetworkMode": "host" if self.host_network else "bridge"},
            "NetworkSettings": {
                "IPAddress": "" if self.host_network else self.address,
                "Ports": {f"{one.port}/tcp": [{"HostIp": one.host, "HostPort": str(one.host_port)}] for one in shown},
            },
        }

    async def _pass_on(self, kind: str, output: io.FileIO) -> None:
        stream = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(stream)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, output)
        while data := await stream.read(1 << 16):
            for watcher in list(self.watchers):
                watcher(kind, data.decode(errors="surrogateescape"))
        transport.close()

    async def _publish(self, published: Published) -> None:
        """Docker's proxy accepts connections from the start, and closes them while nothing listens inside."""

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                inner_reader, inner_writer = await asyncio.open_connection(self.address, published.port)
            except OSError:
                writer.close()
                return
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

        try:
            server = await asyncio.start_server(relay, published.host, published.host_port)
        except OSError as error:
            self._unpublish()
            endpoint = f"driver failed programming external connectivity on endpoint {self.name} ({self.identifier})"
            what = f"Bind for {published.host}:{published.host_port} failed: port is already allocated"
            raise DockerError(f"docker: Error response from daemon: {endpoint}: {what}.", 125) from error
        self.listeners.append(server)
        port = server.sockets[0].getsockname()[1]
        real = Published(published.host, port, published.port)
        self.published = tuple(real if one is published else one for one in self.published)

    def _unpublish(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()

    def _processes(self) -> Iterator[int]:
        """Whatever carries its mark, in whatever session it is and whoever its parent has become."""
        mark = f"HOSTNAME={self.identifier[:12]}".encode()
        for directory in Path("/proc").iterdir():
            with suppress(OSError):
                if directory.name.isdecimal() and mark in (directory / "environ").read_bytes().split(b"\0"):
                    yield int(directory.name)


def inside(words: Sequence[str], image: Image, address: str) -> list[str]:
    """The arguments, with the addresses that they mean inside of a container: its own, or its own loopback."""
    flag = image.host_flag
    if flag is None:
        return list(words)
    result, had_flag = list(words), False
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name != flag:
            continue
        had_flag = True
        if equals:
            result[index] = f"{flag}={_inside(value, address)}"
        elif index + 1 < len(words):
            result[index + 1] = _inside(words[index + 1], address)
    return result if had_flag else [*result, flag, address]


def _inside(host: str, address: str) -> str:
    if host in ANY_ADDRESS:
        return address
    *network, last = address.split(".")
    return ".".join([*network, str(int(last) + 1)])


def _be_pid_1() -> None:
    for number in IGNORED_BY_PID_1:
        signal.signal(number, signal.SIG_IGN)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


def _now() -> str:
    return datetime.now(UTC).isoformat()
