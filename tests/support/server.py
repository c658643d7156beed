"""A real ``llmux serve`` process for integration tests: started on free ports, heard, stopped."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from llmux.gpus.hook import VARIABLE as GPU_HOOK_VARIABLE
from llmux.simulation.gpus import HOOK
from llmux.simulation.ledger import Ledger
from tests.support.fork_server import ForkedProcess, start_llmux

LISTENING = re.compile(r"listening .*url=(http://\S+)")
WARM = "warm-up is over"
START_SECONDS = 30.0
STOP_SECONDS = 30.0
VIRTUAL_GPUS = {GPU_HOOK_VARIABLE: HOOK}
"""Makes llmux read the ledgers of simulated engines as it reads GPUs."""
NO_CERTIFICATES = {"SSL_CERT_FILE": os.devnull}
"""Spares a simulated engine a sixth of its start: reading the certificates of all authorities."""
SIMULATED_ENGINE = str(Path(sys.executable).parent / "llmux-sim-engine")


class LlmuxProcess:
    """One running server; ``url`` is its main port's, ``log`` everything it wrote to standard error so far."""

    def __init__(self, process: ForkedProcess) -> None:
        self.process = process
        self.url = ""
        self.log: list[str] = []
        self._heard = asyncio.Condition()

    async def read_log(self) -> None:
        """Collect the log until the process ends."""
        async for line in self.process.stderr:
            async with self._heard:
                self.log.append(line.decode(errors="replace").rstrip())
                self._heard.notify_all()

    async def wait_for_log(self, pattern: str, timeout_seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait for a line that matches; one that was written already counts."""
        async with asyncio.timeout(timeout_seconds), self._heard:
            seen = 0
            while True:
                for line in self.log[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = len(self.log)
                await self._heard.wait()

    def find_in_log(self, pattern: str) -> list[re.Match[str]]:
        """What matches so far, a match for each line."""
        return [match for line in self.log if (match := re.search(pattern, line))]

    async def terminate(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, and the exit code."""
        if self.process.returncode is None:
            # It may have ended already, with its report still on the way.
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(timeout_seconds):
            return await self.process.wait()

    def descendants(self) -> list[psutil.Process]:
        """All processes that the server has started and that still live: shims, engines, workers."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def simulated_config(
    models: Mapping[str, Mapping[str, Any]], *, ledger: Path | None = None, **top_level: Any
) -> dict[str, Any]:
    """A configuration over simulated engines. Each model: its settings; ``extra_args`` are added to quick defaults.
    One with an ``engine`` of another kind is taken as it is.

    With a ledger (made here if it is missing, of 1,000 MiB) each engine claims 900 MiB of it while awake.
    """
    quick = ["--latency-ms", "1", "--token-ms", "0"]
    if ledger is not None:
        if not ledger.exists():
            Ledger(ledger).create(1000)
        quick += ["--sim-gpu-ledger", str(ledger), "--sim-gpu-memory", "900", "--sim-residue", "20"]
    described = {
        name: dict(settings)
        if "engine" in settings
        else {
            "model_path": f"models/{name}",
            **settings,
            "extra_args": [*quick, *settings.get("extra_args", ())],
            "env": {**NO_CERTIFICATES, **settings.get("env", {})},
        }
        for name, settings in models.items()
    }
    policy = {"policy_type": "fifo", "min_active_seconds": 0.0, **top_level.pop("policy", {})}
    base = {"vllm_command": SIMULATED_ENGINE, "port": 0, "metrics_port": 0, "policy": policy, "models": described}
    return {**base, **top_level}


@asynccontextmanager
async def llmux_server(
    config: Mapping[str, Any] | None,
    directory: Path,
    *arguments: str,
    command: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    waits_until_warm: bool = True,
) -> AsyncIterator[LlmuxProcess]:
    """A server with this configuration, ready for requests; ended at the end, with everything it had started.

    ``command`` is the whole command line instead of ``serve -c FILE``; it runs in ``directory``. A warm-up that is
    configured is waited for, unless ``waits_until_warm`` says otherwise.
    """
    file = directory / "config.json"
    if config is not None:
        file.write_text(json.dumps(config))
    is_warm = waits_until_warm and config is not None and bool(config.get("warmup"))
    server = await _start(
        ["serve", "-c", str(file), *arguments] if command is None else command, directory, environment
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.read_log())
        try:
            try:
                server.url = (await server.wait_for_log(LISTENING.pattern))[1]
                if is_warm:
                    await server.wait_for_log(WARM)
            except TimeoutError:
                raise AssertionError("llmux does not listen:\n" + "\n".join(server.log)) from None
            yield server
        except Exception as error:
            error.add_note("llmux's log ends with:\n" + "\n".join(server.log[-40:]))
            raise
        finally:
            await _end(server)


async def ended_early(
    config: Mapping[str, Any], directory: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """The exit code and the log of a server that is expected to end by itself."""
    file = directory / "config.json"
    file.write_text(json.dumps(config))
    server = await _start(["serve", "-c", str(file)], directory, environment)
    try:
        async with asyncio.timeout(START_SECONDS):
            await server.read_log()
            return await server.process.wait(), "\n".join(server.log)
    finally:
        if server.process.returncode is None:
            await _end(server)


async def _start(command: Sequence[str], directory: Path, environment: Mapping[str, str] | None) -> LlmuxProcess:
    variables = {**VIRTUAL_GPUS, **(environment or {})}
    return LlmuxProcess(await start_llmux(*command, directory=directory, environment=variables))


async def _end(server: LlmuxProcess) -> None:
    family = server.descendants()
    try:
        await server.terminate()
    except TimeoutError:
        server.process.kill()
        await server.process.wait()
        raise AssertionError("llmux did not stop:\n" + "\n".join(server.log[-50:])) from None
    finally:
        for process in family:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()


@asynccontextmanager
async def http_client() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain client without limits of its own."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


def chat(model: str, prompt: str, **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, **more}
