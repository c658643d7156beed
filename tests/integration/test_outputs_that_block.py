"""Standard error or the access log takes nothing: the server goes on, says what was lost, and can be stopped."""

import asyncio
import fcntl
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.bench import OFFLOAD, STOP, eventually
from tests.support.server import SIMULATED_ENGINE, VIRTUAL_GPUS, chat, http_client, simulated_config

PIPE_BYTES = 4096
STOP_SECONDS = 20.0
DROPPED = re.compile(rb"(\d+) log lines? (?:was|were) dropped")


@dataclass(frozen=True, slots=True)
class Blocked:
    """A running server, a client, and the read end of its standard error, which nobody reads but the test."""

    process: asyncio.subprocess.Process
    session: aiohttp.ClientSession
    url: str
    stderr: int

    async def is_up(self) -> bool:
        try:
            async with self.session.get(f"{self.url}/health") as answer:
                return answer.status == 200
        except OSError:
            return False

    async def ask(self, model: str) -> int:
        async with self.session.post(f"{self.url}/v1/chat/completions", json=chat(model, "hello")) as answer:
            return answer.status

    async def metric(self, log: str) -> float:
        async with self.session.get(f"{self.url}/metrics") as answer:
            found = re.search(rf'llmux_log_lines_dropped_total{{log="{log}"}} (\S+)', await answer.text())
            assert found
            return float(found[1])

    def read(self) -> bytes:
        try:
            return os.read(self.stderr, 1 << 20)
        except BlockingIOError:
            return b""

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def blocked(
    directory: Path, port: int, models: Mapping[str, Mapping[str, Any]], *arguments: str, **top_level: Any
) -> AsyncIterator[Blocked]:
    file = directory / "config.json"
    config = simulated_config(models, ledger=directory / "gpu.json", port=port, **top_level)
    file.write_text(json.dumps(config))
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(reader, False)
    command = (sys.executable, "-m", "llmux", "serve", "-c", str(file), *arguments)
    process = await asyncio.create_subprocess_exec(*command, stderr=writer, env={**os.environ, **VIRTUAL_GPUS})
    os.close(writer)
    try:
        async with http_client() as session:
            server = Blocked(process, session, f"http://127.0.0.1:{port}", reader)
            await eventually(server.is_up, "the server listens")
            yield server
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        os.close(reader)


async def test_switches_go_on_while_standard_error_is_not_read(tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    """Each switch logs a line of some 200 bytes, so that the pipe is full after twenty of them."""
    async with blocked(tmp_path, unused_ports[0], {"a": OFFLOAD, "b": OFFLOAD}, canary="off") as server:
        for _ in range(20):
            assert await server.ask("a") == 200
            assert await server.ask("b") == 200
        assert await server.terminate() == 0


def talkative_engine(directory: Path, lines: int, line_bytes: int) -> str:
    """The simulated engine, after it has printed a lot."""
    program = directory / "engine"
    printing = f"import sys; sys.stdout.write(('x' * {line_bytes - 1} + chr(10)) * {lines})"
    program.write_text(f'#!/bin/sh\n"{sys.executable}" -c "{printing}"\nexec "{SIMULATED_ENGINE}" "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.slow
async def test_what_was_dropped_is_said_and_counted(tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    engine = talkative_engine(tmp_path, lines=3000, line_bytes=4000)
    async with blocked(tmp_path, unused_ports[0], {"a": STOP, "b": STOP}, "-v", vllm_command=engine) as server:
        models = itertools.cycle("ab")
        received = b""

        async def is_counted() -> bool:
            # One start may not be enough: of what is printed at once, the shim keeps only 1 MiB, and so does the queue.
            assert await server.ask(next(models)) == 200
            return await server.metric("stderr") > 0

        await eventually(is_counted, "what the engine has printed is dropped and counted")

        def is_said() -> bool:
            nonlocal received
            received += server.read()
            return DROPPED.search(received) is not None

        await eventually(is_said, "the notice")
        assert await server.is_up()
        server.process.send_signal(signal.SIGTERM)

        def has_ended() -> bool:
            nonlocal received
            received += server.read()
            return server.process.returncode is not None

        await eventually(has_ended, "the end")
        assert server.process.returncode == 0
        assert b"stopping" in received, "what came after the notice is there"


async def test_sigterm_works_while_the_access_log_is_not_read(tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    pipe = tmp_path / "access"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    async with blocked(tmp_path, unused_ports[0], {"a": OFFLOAD}, access_log=str(pipe)) as server:
        for _ in range(40):
            assert await server.ask("a") == 200
        assert await server.metric("access_log") == 0, "the queue holds them"
        assert await server.terminate() == 0
    # How many fit depends on how they were batched: Linux puts a write into a pipe's last page only if all of it fits.
    assert 0 < os.read(reader, 1 << 16).count(b"\n") < 40, "the pipe was full"
    os.close(reader)


async def test_an_error_at_the_start_does_not_hang_either(tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    """Its message finds the pipe full of what an earlier program wrote."""
    file = tmp_path / "config.json"
    config = simulated_config({"a": OFFLOAD}, ledger=tmp_path / "gpu.json", port=unused_ports[0])
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", unused_ports[0])
    file.write_text(json.dumps(config))
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.write(writer, b"x" * PIPE_BYTES)
    command = (sys.executable, "-m", "llmux", "serve", "-c", str(file))
    process = await asyncio.create_subprocess_exec(*command, stderr=writer)
    os.close(writer)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            assert await process.wait() == 1
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(reader)
        taken.close()


@pytest.mark.parametrize("how", ["closed", "full"])
async def test_a_broken_standard_error_stops_nothing(tmp_path: Path, unused_ports: tuple[int, int], how: str) -> None:
    models = {"a": OFFLOAD, "b": OFFLOAD}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(simulated_config(models, ledger=tmp_path / "gpu.json", port=unused_ports[0])))
    if how == "full":
        stderr = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stderr = os.pipe()
        os.close(reader)
    command = (sys.executable, "-m", "llmux", "serve", "-c", str(file))
    process = await asyncio.create_subprocess_exec(*command, stderr=stderr, env={**os.environ, **VIRTUAL_GPUS})
    os.close(stderr)
    try:
        async with http_client() as session:
            server = Blocked(process, session, f"http://127.0.0.1:{unused_ports[0]}", -1)
            await eventually(server.is_up, "the server listens")
            assert [await server.ask(model) for model in "abab"] == [200] * 4
            assert await server.metric("stderr") > 0
            assert await server.terminate() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
