"""Engines for the tests with the real criu, and what may not be left of them."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from llmux.checkpoints import firewall, images, shared_memory
from llmux.checkpoints.fingerprint import fingerprint_of
from llmux.checkpoints.manifest import Manifest
from llmux.core.eviction import Eviction
from llmux.engines.checkpointer import Checkpointer, CriuSettings, ImageFacts
from llmux.engines.process import EngineProcess, LaunchCommand
from llmux.hosts.local import choose_ports, create_temporary_directory
from tests.support.processes import exists

CRIU = os.environ.get("LLMUX_TEST_CRIU", "")
SKIP_REASON = "the real criu is not configured: set LLMUX_TEST_CRIU, see docs/testing.md"
SHM = Path("/dev/shm")
ANSWER_SECONDS = 10.0
DEADLINE_SECONDS = 30.0

STUB = """
import http.server, json, os, sys
blob = os.urandom(int(sys.argv[2]) << 20)
count = 0
class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *words):
        print("GET", self.path, flush=True)
    def do_GET(self):
        global count
        count += 1
        if self.path == "/exit": os._exit(7)
        facts = {"pid": os.getpid(), "count": count, "first": blob[:8].hex(), "last": blob[-8:].hex()}
        body = json.dumps(facts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answers)
print("ready", flush=True)
server.serve_forever()
"""
"""Answers with random bytes from both ends of its memory, and logs each request on stdout."""

FAMILY = """
import http.server, json, multiprocessing, os, sys, tempfile
from multiprocessing import shared_memory
def work(entered, left, name, connection):
    memory = shared_memory.SharedMemory(name)
    while True:
        entered.acquire()
        memory.buf[0] = (memory.buf[0] + 1) % 256
        left.release()
        connection.send(os.getpid())
def main():
    context = multiprocessing.get_context("spawn")
    entered, left = context.Semaphore(0), context.Semaphore(0)
    memory = shared_memory.SharedMemory(create=True, size=8 << 20)
    blob = os.urandom(int(sys.argv[2]) << 20)
    ours, theirs = context.Pipe()
    child = context.Process(target=work, args=(entered, left, memory.name, theirs))
    child.start()
    notes = open(os.path.join(tempfile.gettempdir(), "notes"), "w+")
    class Answers(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words):
            print("GET", self.path, flush=True)
        def do_GET(self):
            entered.release()
            left.acquire()
            pid = ours.recv()
            notes.write("x")
            notes.flush()
            size = os.stat(notes.name).st_size
            facts = {"pid": os.getpid(), "child": pid, "count": memory.buf[0], "notes": size}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(facts).encode())
    server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers)
    print("ready", flush=True)
    server.serve_forever()
if __name__ == "__main__":
    main()
"""
"""Counts in memory that it shares with a child, to which it speaks by semaphores of the spawn context."""


@dataclass(slots=True)
class Engine:
    """A stub engine, running or in an image."""

    model: str
    port: int
    argv: tuple[str, ...]
    imager: Checkpointer
    process: EngineProcess
    lines: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)

    async def get(self, path: str = "/") -> dict[str, Any]:
        return await asyncio.to_thread(fetch, self.port, path)

    def facts(self, *, has_frozen: bool = False) -> ImageFacts:
        return ImageFacts(
            model=self.model,
            port=self.port,
            identity=fingerprint_of(self.argv, os.environ),
            steps=(),
            eviction=Eviction.parse("retain+checkpoint"),
            has_frozen=has_frozen,
            argv=self.argv,
        )

    @property
    def path(self) -> Path:
        return self.imager.image_path(self.model)

    async def dump(self) -> Manifest:
        manifest = await self.imager.dump(self.process, self.facts())
        assert self.process.is_gone
        assert only_image_left(manifest)
        return manifest

    async def restore(self, path: Path | None = None) -> Manifest:
        self.process, manifest = await self.imager.restore(
            path or self.path, on_line=self.hear, on_exit=self.exits.append
        )
        return manifest

    def hear(self, stream: str, line: str) -> None:
        self.lines.append(line)

    async def heard(self, count: int, text: str) -> None:
        """Wait until so many lines with the text have come."""

        def is_over() -> bool:
            return sum(text in line for line in self.lines) >= count or bool(self.exits)

        await until(is_over, f"{count} lines with {text!r}")
        assert not self.exits, self.lines


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a state of other processes, which are left the processor meanwhile."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        await asyncio.sleep(0.005)


def fetch(port: int, path: str = "/") -> dict[str, Any]:
    """The engine's answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_SECONDS) as answer:
        return dict(json.load(answer))


def imager(directory: Path, **settings: Any) -> Checkpointer:
    """An imager of its own for one test."""
    return Checkpointer(CriuSettings(CRIU, None, directory, **settings))


@asynccontextmanager
async def started(
    imager: Checkpointer, script: str = STUB, *arguments: str, model: str = "stub", checkpointable: bool = True
) -> AsyncIterator[Engine]:
    """An engine that answers; whatever it is in the end, it is killed with the block."""
    (port,) = choose_ports(1)
    directory = create_temporary_directory(model)
    file = directory / "engine.py"
    file.write_text(script)
    argv = (sys.executable, str(file), str(port), *(arguments or ("8" if script == FAMILY else "64",)))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    launch = LaunchCommand(argv, environment, None, directory, checkpointable)
    lines: list[str] = []
    exits: list[int] = []
    process = await EngineProcess.spawn(launch, on_line=lambda _, line: lines.append(line), on_exit=exits.append)
    engine = Engine(model, port, argv, imager, process, lines, exits)
    try:
        await engine.heard(1, "ready")
        yield engine
    finally:
        await engine.process.stop(5.0, 5.0)
        await engine.imager.drop(engine.path)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Whatever the block does, it leaves nothing of its engines in /dev/shm, none of its tables, and no child of ours.

    Others may use criu at the same time: only what this process has heard of as its own is looked for.
    """
    children, tables = find_children(), set[str]()
    remove = images.remove

    def note_tables_and_remove(path: Path, top: Path) -> None:
        tables.update(firewall.find_tables(path / "dump.log"))
        remove(path, top)

    with (
        patch.object(images, "remove", note_tables_and_remove),
        recorded(shared_memory, "find_names") as before,
        recorded(shared_memory, "take_into_image") as taken,
    ):
        yield
    assert not firewall.list_tables() & tables
    files = [name for names in (*before, *taken) for name in names if (SHM / name).exists()]
    assert not files, files
    new_children = find_children() - children
    assert not new_children, new_children


@contextmanager
def small_file_system(directory: Path, size_mib: int) -> Iterator[Path]:
    """A directory with no more room than that."""
    directory.mkdir()
    options = f"size={size_mib}m,mode=0700"
    subprocess.run(("mount", "-t", "tmpfs", "-o", options, "llmux-test", str(directory)), check=True)
    yield directory
    subprocess.run(("umount", str(directory)), check=True)


@contextmanager
def recorded(module: ModuleType, name: str) -> Iterator[list[Iterable[str]]]:
    """What the function returns while the block lasts."""
    results: list[Iterable[str]] = []
    original = getattr(module, name)

    def record(*arguments: Any) -> Any:
        results.append(result := original(*arguments))
        return result

    with patch.object(module, name, record):
        yield results


def find_children() -> set[str]:
    """The processes that this one has started and not reaped, whatever became of them."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def only_image_left(manifest: Manifest) -> bool:
    """Whether the numbers of the engine are free again, and its files are nowhere but in the image."""
    directory = manifest.temporary_directory
    files = [SHM / name for name in manifest.shared_memory]
    return not any(map(exists, manifest.numbers)) and not any(
        path.exists() for path in (*files, *([] if directory is None else [Path(directory)]))
    )


def only_other_child(parent: int | None, besides: int) -> int:
    """The one child of a shim that is not its engine: its criu."""
    children = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    (found,) = (pid for pid in children if pid != besides)
    return found


@contextmanager
def take_number(number: int) -> Iterator[int]:
    """Let a stranger have the number while the block lasts."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(100):
        last.write_text(str(number - 1))
        with subprocess.Popen(("sleep", "1000")) as stranger:
            try:
                if stranger.pid == number:
                    yield number
                    return
            finally:
                stranger.kill()
    raise AssertionError(f"the number {number} could not be taken")
