"""Engines for the tests with the real criu, and checks that nothing is left of them."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from llmux.checkpoints import firewall, images, shared_memory
from llmux.checkpoints.checkpointer import Checkpointer, CriuSettings, RestoreCommand
from llmux.checkpoints.facts import ImageFacts
from llmux.checkpoints.fingerprint import fingerprint_of
from llmux.checkpoints.manifest import Manifest
from llmux.core.eviction import Eviction
from llmux.hosts.local import choose_ports, create_temporary_directory
from llmux.instances.process import EngineProcess, LaunchCommand
from tests.support.fork_server import orders_to_fork_server
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
"""A server that answers with random bytes from both ends of its memory, and prints each request."""

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
"""A server that counts in memory shared with a child, synchronised by semaphores of the spawn context."""


@dataclass(slots=True)
class Engine:
    """A stub engine, running or in an image."""

    model: str
    port: int
    argv: tuple[str, ...]
    checkpointer: Checkpointer
    process: EngineProcess
    lines: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)

    async def get(self, path: str = "/") -> dict[str, Any]:
        return await asyncio.to_thread(fetch, self.port, path)

    def facts(self, *, has_frozen: bool = False) -> ImageFacts:
        return ImageFacts(
            model=self.model,
            port=self.port,
            fingerprint=fingerprint_of(self.argv, os.environ),
            steps=(),
            eviction=Eviction.parse("retain+checkpoint"),
            has_frozen=has_frozen,
            argv=self.argv,
        )

    @property
    def path(self) -> Path:
        return self.checkpointer.image_path(self.model)

    async def dump(self) -> Manifest:
        manifest = await self.checkpointer.dump(self.process, self.facts())
        assert not exists(self.process.pid)
        assert only_image_left(manifest)
        return manifest

    async def restore(self, path: Path | None = None) -> Manifest:
        self.process, manifest = await self.checkpointer.restore(path or self.path, self.run_criu)
        return manifest

    async def run_criu(self, command: RestoreCommand) -> EngineProcess:
        return await EngineProcess.restore(command, on_line=self.add_line, on_exit=self.exits.append)

    def add_line(self, stream: str, line: str) -> None:
        self.lines.append(line)

    async def wait_for_lines(self, count: int, text: str) -> None:
        """Wait until the engine has printed ``count`` lines with the text."""

        def is_over() -> bool:
            return sum(text in line for line in self.lines) >= count or bool(self.exits)

        await until(is_over, f"{count} lines with {text!r}")
        assert not self.exits, self.lines


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a state of other processes, without keeping the processor from them."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        await asyncio.sleep(0.005)


def fetch(port: int, path: str = "/") -> dict[str, Any]:
    """The engine's answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_SECONDS) as answer:
        return dict(json.load(answer))


def new_checkpointer(directory: Path, **settings: Any) -> Checkpointer:
    """A checkpointer for one test, with its images in the directory."""
    return Checkpointer(CriuSettings(CRIU, None, directory, **settings))


@asynccontextmanager
async def started(
    checkpointer: Checkpointer, script: str = STUB, *arguments: str, model: str = "stub", checkpointable: bool = True
) -> AsyncIterator[Engine]:
    """An engine that answers; at the end of the block it is stopped and its image deleted."""
    (port,) = choose_ports(1)
    directory = create_temporary_directory(model)
    file = directory / "engine.py"
    file.write_text(script)
    argv = (sys.executable, str(file), str(port), *(arguments or ("8" if script == FAMILY else "64",)))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    launch = LaunchCommand(argv, environment, directory, checkpointable)
    lines: list[str] = []
    exits: list[int] = []
    process = await EngineProcess.spawn(launch, on_line=lambda _, line: lines.append(line), on_exit=exits.append)
    engine = Engine(model, port, argv, checkpointer, process, lines, exits)
    try:
        await engine.wait_for_lines(1, "ready")
        yield engine
    finally:
        await engine.process.stop(5.0, 5.0)
        await engine.checkpointer.delete(engine.path)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that the block leaves none of its files in /dev/shm, none of its firewall tables and no child process.

    Others may use criu at the same time: only names that this process has seen as its own are checked.
    """
    orders_to_fork_server()  # It outlives the test that needs it first.
    children, tables = find_children(), set[str]()
    remove_directory = images.remove_directory

    def note_tables_and_remove(path: Path, top: Path) -> None:
        tables.update(firewall.find_tables(path / "dump.log"))
        remove_directory(path, top)

    with (
        patch.object(images, "remove_directory", note_tables_and_remove),
        recorded(shared_memory, "find_names") as before,
        recorded(shared_memory, "move_into_image") as moved,
    ):
        yield
    with ThreadPoolExecutor(1) as thread:
        # The firewall is read on an event loop of its own, which cannot run inside the one of an asynchronous test.
        left = thread.submit(firewall.list_tables).result()
    assert not left & tables
    files = [name for names in (*before, *moved) for name in names if (SHM / name).exists()]
    assert not files, files
    new_children = find_children() - children
    assert not new_children, new_children


@contextmanager
def small_file_system(directory: Path, size_mib: int) -> Iterator[Path]:
    """A directory in a file system of this size."""
    directory.mkdir()
    options = f"size={size_mib}m,mode=0700"
    subprocess.run(("mount", "-t", "tmpfs", "-o", options, "llmux-test", str(directory)), check=True)
    yield directory
    subprocess.run(("umount", str(directory)), check=True)


@contextmanager
def recorded(module: ModuleType, name: str) -> Iterator[list[Iterable[str]]]:
    """Record what the function returns within the block."""
    results: list[Iterable[str]] = []
    original = getattr(module, name)

    def record(*arguments: Any) -> Any:
        results.append(result := original(*arguments))
        return result

    with patch.object(module, name, record):
        yield results


def find_children() -> set[str]:
    """Processes that this one has started and not reaped, zombies included."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def only_image_left(manifest: Manifest) -> bool:
    """Whether the engine's ids are free again, and its files exist only in the image."""
    directory = manifest.temporary_directory
    files = [SHM / name for name in manifest.shared_memory]
    return not any(map(exists, manifest.required_ids)) and not any(
        path.exists() for path in (*files, *([] if directory is None else [Path(directory)]))
    )


def only_other_child(parent: int | None, besides: int) -> int:
    """The only child of a shim beside its engine: its criu."""
    children = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    (found,) = (pid for pid in children if pid != besides)
    return found


@contextmanager
def take_number(number: int) -> Iterator[int]:
    """Let an unrelated process have the pid within the block."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(100):
        last.write_text(str(number - 1))
        with subprocess.Popen(("sleep", "1000")) as other:
            try:
                if other.pid == number:
                    yield number
                    return
            finally:
                other.kill()
    raise AssertionError(f"the number {number} could not be taken")
