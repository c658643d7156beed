"""The processes of a check: what holds GPU memory beside llmux, and the program that llmux starts as its engine."""

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.machine import ENGINE
from bench.gpu.resident import MARK_FLAG

START_LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class EngineProgram:
    """How the check's engines and holders are started."""

    python: str
    device: str
    mark: str
    """In the command line of all of them."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What each of their commands ends with."""
        return ("--device", self.device, MARK_FLAG, self.mark)

    def install(self, path: Path) -> Path:
        """Write the one word that llmux takes for a program."""
        path.write_text(f'#!/bin/sh\nexec {shlex.join((self.python, str(ENGINE)))} "$@"\n')
        path.chmod(0o755)
        return path


class Holder:
    """A process of somebody else's that holds GPU memory."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def read(self) -> dict[str, Any]:
        """What it said next: its memory as PyTorch sees it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(START_LIMIT_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that holds memory has ended with exit code {await self._process.wait()}")
        document: dict[str, Any] = json.loads(line)
        return document

    async def look(self) -> dict[str, Any]:
        """Ask it what it sees now."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return await self.read()

    async def release(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(START_LIMIT_SECONDS):
            await self._process.wait()


async def write_weights(program: EngineProgram, models: Mapping[Path, Sequence[str]]) -> None:
    """Write each model's weights, which its flags describe.

    Before llmux starts: an image counts as out of date when its model's files have changed since the engine's start.
    """
    processes = [
        await asyncio.create_subprocess_exec(program.python, str(ENGINE), "prepare", str(path), *flags)
        for path, flags in models.items()
    ]
    if any([await process.wait() for process in processes]):
        raise RuntimeError("the weights could not be written; is there room? --directory names another place")


@asynccontextmanager
async def holding(program: EngineProgram, mib: int) -> AsyncIterator[Holder]:
    """A process that holds so much, from when it really does."""
    command = (program.python, str(ENGINE), "hold", "--mib", str(mib), *program.flags)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    holder = Holder(process)
    try:
        await holder.read()
        yield holder
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
