"""One run of the program ``llmux`` to its end."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.fork_server import start_llmux
from tests.support.server import VIRTUAL_GPUS

RUN_SECONDS = 50.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended, and what it wrote."""

    code: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """Its output as JSON."""
        return json.loads(self.output)

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.output}\n{self.errors}"


async def run_llmux(
    *arguments: str, directory: Path | None, limit_seconds: float = RUN_SECONDS, **variables: str
) -> Ended:
    """Run a command line in the directory, with further environment variables."""
    plain = {**VIRTUAL_GPUS, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1", **variables}
    process = await start_llmux(*arguments, directory=directory, environment=plain)
    try:
        async with asyncio.timeout(limit_seconds):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, output.decode(), errors.decode())


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """As ``config.json``, where llmux looks for it."""
    (directory / "config.json").write_text(json.dumps(config))
