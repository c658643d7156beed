"""Real processes of the simulated engine, for tests."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import aiohttp

from tests.support.server import SIMULATED_ENGINE

DEADLINE_SECONDS = 15.0
PROGRAM = ("-m", "llmux.simulation.engine")


@dataclass(slots=True)
class EngineProcess:
    """One started engine and a client for it."""

    process: asyncio.subprocess.Process
    session: aiohttp.ClientSession
    output: IO[bytes]
    errors: IO[bytes]
    port: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url(path)) as response:
            return response.status, await _content(response)

    async def delete(self, path: str) -> tuple[int, Any]:
        async with self.session.delete(self.url(path)) as response:
            return response.status, await _content(response)

    async def post(self, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        async with self.session.post(self.url(path), json=body, **options) as response:
            return response.status, await _content(response)

    async def ask(self, prompt: str = "hello", **fields: Any) -> tuple[int, Any]:
        """One chat request."""
        body = {"messages": [{"role": "user", "content": prompt}], **fields}
        return await self.post("/v1/chat/completions", body)

    async def answer(self, prompt: str = "hello", **fields: Any) -> str:
        """The text of the answer to one chat request; fails the test if there is none."""
        status, body = await self.ask(prompt, **fields)
        assert status == 200, body
        return str(body["choices"][0]["message"]["content"])

    async def stats(self) -> dict[str, Any]:
        _, body = await self.get("/stats")
        assert isinstance(body, dict)
        return body

    async def running(self, count: int) -> None:
        """Wait until ``count`` requests run."""

        async def reached() -> bool:
            return bool((await self.stats())["running"] == count)

        await eventually(reached, f"{count} running requests")

    async def exit_code(self) -> int:
        return await asyncio.wait_for(self.process.wait(), DEADLINE_SECONDS)

    def stdout(self) -> str:
        return _text(self.output)

    def stderr(self) -> str:
        return _text(self.errors)


@contextlib.asynccontextmanager
async def launched(
    *arguments: str, environment: Mapping[str, str] | None = None, program: Sequence[str] = PROGRAM
) -> AsyncIterator[EngineProcess]:
    """Start an engine with vLLM's development mode on, not yet ready; its process group is killed after the block.

    ``program`` is what Python runs.
    """
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("LLMUX_SIM_", "VLLM_"))}
    # Files instead of pipes: with those, asyncio's wait() would not return before the engine's workers have ended too.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**settings, "VLLM_SERVER_DEV_MODE": "1", **(environment or {})},
            start_new_session=True,
        )
        timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS)
        # A new connection for each request: what the engine does to one must not affect the next.
        connector = aiohttp.TCPConnector(force_close=True)
        try:
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
                yield EngineProcess(process, session, output, errors)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@contextlib.asynccontextmanager
async def engine(
    *arguments: str, model: str = "model", environment: Mapping[str, str] | None = None
) -> AsyncIterator[EngineProcess]:
    """Start an engine and wait until it is ready; with sleep mode, and without latency unless the arguments set one."""
    flags = ["serve", model, "--port", "0", "--latency-ms", "0", "--enable-sleep-mode", *arguments]
    async with launched(*flags, environment=environment) as started:
        started.port = await ready_port(started)
        yield started


@contextlib.asynccontextmanager
async def stand_in(
    kind: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[EngineProcess]:
    """Start an engine of a kind other than vLLM and wait until it is ready; without latency, as ``engine``."""
    flags = ["--sim-kind", kind, "--port", "0", "--latency-ms", "0", *arguments]
    async with launched(*flags, environment=environment) as started:
        started.port = await ready_port(started)
        yield started


async def ready_port(started: EngineProcess) -> int:
    """Wait for the engine's READY line; returns the port in it."""

    async def ready() -> bool:
        assert started.process.returncode is None, started.stderr()
        return started.stdout().endswith("\n")

    await eventually(ready, "READY on stdout")
    word, port = started.stdout().split()
    assert word == "READY"
    return int(port)


async def eventually(reached: Callable[[], Awaitable[bool]], what: str) -> None:
    """Poll until the condition holds."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not await reached():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not reached in {DEADLINE_SECONDS} s: {what}") from None


def is_alive(pid: int) -> bool:
    """Whether the process exists (a zombie does not count)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def _content(response: aiohttp.ClientResponse) -> Any:
    if response.content_type == "application/json":
        return await response.json()
    return await response.text()


def _text(file: IO[bytes]) -> str:
    # Not seek and read: the engine shares the file's offset.
    return os.pread(file.fileno(), 1 << 20, 0).decode()


def gated_engine(directory: Path) -> tuple[str, Path]:
    """The simulated engine, which starts once a file exists; and that file."""
    program, gate = directory / "gated", directory / "gate"
    program.write_text(f'#!/bin/sh\nuntil [ -e "{gate}" ]; do sleep 0.02; done\nexec "{SIMULATED_ENGINE}" "$@"\n')
    program.chmod(0o755)
    return str(program), gate
