"""The daemon: owns all containers, and does what the clients ask. Ends, with its containers, when its input does."""

import asyncio
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.docker.containers import Container, Image, Published, inside
from tests.support.docker.words import Command, DockerError, parse, render

VERSION = "28.5.1"
STOP_SECONDS = 10.0


class Client:
    """The connection of one client program."""

    def __init__(self, writer: asyncio.StreamWriter, environment: Mapping[str, str]) -> None:
        self._writer = writer
        self.environment = environment

    def say(self, **frame: Any) -> None:
        """Send a frame; nobody minds if the client is gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(frame).encode() + b"\n")

    def print(self, line: str) -> None:
        """Have a line printed."""
        self.say(out=f"{line}\n")

    def output(self, kind: str, text: str) -> None:
        """Pass on a container's output."""
        self.say(**{kind: text})


class Daemon:
    """All containers by their identifiers."""

    def __init__(self, images: Mapping[str, Image], tasks: asyncio.TaskGroup) -> None:
        self._images = images
        self._tasks = tasks
        self._containers: dict[str, Container] = {}
        self._network = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}"
        self._addresses = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do what one client asks."""
        asked = json.loads(await reader.readline())
        client = Client(writer, asked["environment"])
        try:
            command = parse(asked["words"])
            code = await getattr(self, f"_{command.name}")(client, command)
        except DockerError as error:
            client.say(err=f"{error}\n")
            code = error.exit_code
        client.say(exit=code)
        with suppress(OSError):
            await writer.drain()
        writer.close()

    async def end(self) -> None:
        """Kill everything."""
        for container in list(self._containers.values()):
            await container.stop(0, signal.SIGKILL)

    async def _run(self, client: Client, command: Command) -> int:
        container = self._create(client, command)
        try:
            await container.start()
        except DockerError:
            if container.auto_remove:
                self._remove(container)
            raise
        detached = command.is_set("detach")
        if not detached:
            container.watchers.add(client.output)
            if command.is_set("sig-proxy", default=True):
                client.say(forward_to=container.identifier)
        self._tasks.create_task(self._live(container))
        if detached:
            client.print(container.identifier)
            return 0
        await (container.removed if container.auto_remove else container.ended).wait()
        return container.exit_code

    async def _live(self, container: Container) -> None:
        await container.run_to_end()
        if container.auto_remove:
            self._remove(container)

    def _create(self, client: Client, command: Command) -> Container:
        image_name, *words = command.arguments
        image = self._images.get(image_name)
        if image is None:
            denied = "repository does not exist or may require 'docker login': denied"
            client.say(err=f"Unable to find image '{image_name}' locally\n")
            message = f"docker: Error response from daemon: pull access denied for {image_name}, {denied}"
            raise DockerError(message, 125)
        name = command.one("name") or f"eager_{secrets.token_hex(4)}"
        self._refuse_conflict(name)
        host_network = "host" in (command.one("network"), command.one("net"))
        self._addresses += 2
        address = f"{self._network}.{self._addresses % 254}"
        entrypoint = [command.one("entrypoint")] if command.all("entrypoint") else list(image.entrypoint)
        container = Container(
            name=name,
            image_name=image_name,
            words=[*entrypoint, *(words if host_network else inside(words, image, address))],
            environment={**image.environment, **_variables(command.all("env"), client.environment)},
            address=address,
            published=tuple(map(Published.parse, command.all("publish"))),
            labels=dict(label.partition("=")[::2] for label in command.all("label")),
            auto_remove=command.is_set("rm"),
            has_init=command.is_set("init"),
            host_network=host_network,
            stop_signal=_signal_number(command.one("stop-signal", "TERM")),
            stop_seconds=float(command.one("stop-timeout", str(STOP_SECONDS))),
        )
        self._containers[container.identifier] = container
        return container

    def _refuse_conflict(self, name: str) -> None:
        taken = next((one for one in self._containers.values() if one.name == name), None)
        if taken is not None:
            raise DockerError(
                f'docker: Error response from daemon: Conflict. The container name "/{name}" is already in use by '
                f'container "{taken.identifier}". You have to remove (or rename) that container to be able to reuse '
                "that name.\n\nRun 'docker run --help' for more information",
                125,
            )

    def _remove(self, container: Container) -> None:
        self._containers.pop(container.identifier, None)
        container.removed.set()

    def _find(self, name: str) -> Container:
        for container in self._containers.values():
            if container.name == name.removeprefix("/") or (name and container.identifier.startswith(name)):
                return container
        raise DockerError(f"Error response from daemon: No such container: {name}")

    async def _stop(self, client: Client, command: Command) -> int:
        seconds = command.one("time") or command.one("timeout")
        number = _signal_number(command.one("signal")) if command.one("signal") else None
        for name in command.arguments:
            await self._find(name).stop(float(seconds) if seconds else None, number)
            client.print(name)
        return 0

    async def _kill(self, client: Client, command: Command) -> int:
        number = _signal_number(command.one("signal", "KILL"))
        for name in command.arguments:
            container = self._find(name)
            if not container.running:
                why = f"container {container.identifier} is not running"
                raise DockerError(f"Error response from daemon: cannot kill container: {name}: {why}")
            container.signal(number)
            client.print(name)
        return 0

    async def _rm(self, client: Client, command: Command) -> int:
        for name in command.arguments:
            try:
                container = self._find(name)
            except DockerError as error:
                if not command.is_set("force"):
                    raise
                client.say(err=f"{error}\n")
                continue
            if container.running:
                if not command.is_set("force"):
                    what = f'cannot remove container "/{container.name}": container is running'
                    remedy = "stop the container before removing or force remove"
                    raise DockerError(f"Error response from daemon: {what}: {remedy}")
                await container.stop(0, signal.SIGKILL)
            self._remove(container)
            client.print(name)
        return 0

    async def _wait(self, client: Client, command: Command) -> int:
        for name in command.arguments:
            container = self._find(name)
            await container.ended.wait()
            client.print(str(container.exit_code))
        return 0

    async def _inspect(self, client: Client, command: Command) -> int:
        template = command.one("format")
        found: list[dict[str, Any]] = []
        missing: list[str] = []
        for name in command.arguments:
            try:
                found.append(self._find(name).document())
            except DockerError:
                missing.append(name)
        if template and template != "json":
            client.print("\n".join(render(template, document) for document in found))
        else:
            client.print(json.dumps(found, indent=4))
        for name in missing:
            client.say(err=f"error: no such object: {name}\n")
        return 1 if missing else 0

    async def _ps(self, client: Client, command: Command) -> int:
        shown = [one for one in self._containers.values() if command.is_set("all") or one.running]
        for condition in command.all("filter"):
            key, _, value = condition.partition("=")
            shown = [one for one in shown if _fits(one, key, value)]
        rows = [_row(container, full=command.is_set("no-trunc")) for container in shown]
        if command.is_set("quiet"):
            lines = [row["ID"] for row in rows]
        elif template := command.one("format"):
            lines = [render(template, row) for row in rows]
        else:
            columns = ("ID", "Image", "Status", "Names")
            lines = [
                "CONTAINER ID   IMAGE   STATUS   NAMES",
                *("   ".join(row[one] for one in columns) for row in rows),
            ]
        for line in lines:
            client.print(line)
        return 0

    async def _version(self, client: Client, command: Command) -> int:
        document = {"Client": {"Version": VERSION}, "Server": {"Version": VERSION}}
        client.print(render(command.one("format") or "{{.Server.Version}}", document))
        return 0


def _row(container: Container, *, full: bool) -> dict[str, str]:
    identifier = container.identifier if full else container.identifier[:12]
    status = "Up 1 second" if container.running else f"Exited ({container.exit_code}) 1 second ago"
    names = {"ID": identifier, "Names": container.name, "Image": container.image_name}
    return {**names, "State": container.status, "Status": "Created" if container.status == "created" else status}


def _fits(container: Container, key: str, value: str) -> bool:
    match key:
        case "name":
            return re.search(value, container.name) is not None or re.search(value, f"/{container.name}") is not None
        case "id":
            return container.identifier.startswith(value)
        case "status":
            return container.status == value
        case "label":
            name, equals, wanted = value.partition("=")
            return name in container.labels and (not equals or container.labels[name] == wanted)
        case _:
            raise DockerError(f"Error response from daemon: invalid filter '{key}'")


def _variables(given: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    """``NAME`` alone is passed on from the client's environment, if it is there."""
    pairs = (one.partition("=") for one in given)
    return {
        name: value if equals else environment[name] for name, equals, value in pairs if equals or name in environment
    }


def _signal_number(text: str) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"]
    except KeyError:
        raise DockerError(f"Error response from daemon: invalid signal: {text}") from None


async def main(address: str, images: Mapping[str, Image]) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(0, lambda: os.read(0, 1) or over.set())
    async with asyncio.TaskGroup() as tasks:
        daemon = Daemon(images, tasks)
        server = await asyncio.start_unix_server(daemon.serve, address)
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        await over.wait()
        server.close()
        await daemon.end()
    os._exit(0)


if __name__ == "__main__":
    known = json.loads(Path(sys.argv[2]).read_text())
    asyncio.run(main(sys.argv[1], {name: Image(**fields) for name, fields in known.items()}))
