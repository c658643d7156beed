"""The real llama-server for tests: where it is, and one that runs with the tiny models."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp

from llmux.errors import ControlCallFailed
from llmux.hosts.local import choose_ports

VARIABLES = ("LLMUX_TEST_LLAMA", "LLMUX_TEST_GGUF")
MISSING = [name for name in VARIABLES if not os.environ.get(name)]
SKIP_REASON = f"the real llama.cpp is not configured: set {', '.join(MISSING)}, see docs/testing.md"

START_SECONDS = 60.0
REQUEST_SECONDS = 300.0
STOP_SECONDS = 10.0

ONE_THREAD = ("-t", "1", "-tb", "1")
"""Several threads wait for each other in loops, which on a busy machine takes hundreds of times longer."""
WORDS = ("amber", "anchor", "apple", "arrow", "ash", "autumn", "barley", "basil", "bell", "birch", "blue", "bread")
"""Words of which the tiny models know each as one token."""


def program() -> str:
    """The server's program."""
    return str(Path(os.environ["LLMUX_TEST_LLAMA"]) / "bin" / "llama-server")


def model_path(name: str) -> Path:
    """One of the tiny models: ``a`` and ``b`` answer at once, ``slow`` reads a prompt at 30 ms a token."""
    return Path(os.environ["LLMUX_TEST_GGUF"]) / f"{name}.gguf"


def words(count: int, seed: int = 0) -> str:
    """A text of so many tokens, the same for the same seed."""
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(count))


@dataclass(frozen=True, slots=True)
class LlamaAnswer:
    """What a request brought."""

    text: str
    slot: int
    cached: int
    """Tokens of the prompt that were in the slot already."""
    read: int
    """Tokens of the prompt that had to be read."""
    first_token_seconds: float


class RealLlama:
    """A llama-server that runs; its ``get`` and ``post`` are those that llmux calls an engine with."""

    def __init__(
        self, process: asyncio.subprocess.Process, port: int, session: aiohttp.ClientSession, log: Path
    ) -> None:
        self.process = process
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        self._session = session

    async def get(self, path: str, timeout_seconds: float) -> Any:
        return await self._call("GET", path, None, timeout_seconds)

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        return await self._call("POST", path, document, timeout_seconds)

    async def _call(self, method: str, path: str, document: Mapping[str, Any] | None, timeout_seconds: float) -> Any:
        limit = aiohttp.ClientTimeout(total=timeout_seconds)
        try:
            async with self._session.request(method, self.url + path, json=document, timeout=limit) as response:
                body = await response.read()
        except TimeoutError:
            raise ControlCallFailed(path, "no answer in time", is_timeout=True) from None
        except aiohttp.ClientError as error:
            raise ControlCallFailed(path, repr(error)) from error
        if response.status != 200:
            raise ControlCallFailed(path, f"status {response.status}: {body.decode(errors='replace')}", response.status)
        return json.loads(body)

    async def ask(self, prompt: str, tokens: int = 2, **more: Any) -> LlamaAnswer:
        """A streamed greedy completion, without saying which slot."""
        asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "stream": True, **more}
        limit = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        began, first, text, last = monotonic(), None, "", {}
        async with self._session.post(f"{self.url}/completion", json=asked, timeout=limit) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    last = json.loads(line[6:])
                    text += last["content"]
                    first = first or monotonic() - began
        timings = last["timings"]
        return LlamaAnswer(text, last["id_slot"], timings["cache_n"], timings["prompt_n"], first or 0.0)

    async def wait_until_busy(self, slot: int) -> None:
        """Return once the slot answers a request; before its prompt has been read, the server answers nobody."""
        async with asyncio.timeout(START_SECONDS):
            while not (await self.get("/slots", START_SECONDS))[slot]["is_processing"]:
                await asyncio.sleep(0.02)

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), STOP_SECONDS)

    async def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def running(model: Path, *arguments: str, directory: Path) -> AsyncIterator[RealLlama]:
    """A server that is ready, and that is killed at the end if it still runs. Its log is put into the directory."""
    port = choose_ports(1)[0]
    log = directory / f"llama-server-{port}.log"
    usual = ("--host", "127.0.0.1", "--port", str(port), "--no-ui", "--offline", *ONE_THREAD)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(program(), "-m", str(model), *usual, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        server = RealLlama(process, port, session, log)
        try:
            await _until_ready(server)
            yield server
        finally:
            await server.kill()


async def _until_ready(server: RealLlama) -> None:
    deadline = monotonic() + START_SECONDS
    while True:
        try:
            await server.get("/health", 5.0)
        except ControlCallFailed:
            runs = server.process.returncode is None and monotonic() < deadline
            assert runs, f"llama-server does not start:\n{server.log.read_text(errors='replace')[-4000:]}"
            await asyncio.sleep(0.02)
        else:
            return
