"""Programs with real client libraries: where these are installed, and running one against a server."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parents[1] / "clients" / "programs"
VARIABLE = "LLMUX_TEST_CLIENTS"
CHROMIUM_VARIABLE = "LLMUX_TEST_CHROMIUM"
SKIP_REASON = f"the client programs are not configured: set {VARIABLE} and {CHROMIUM_VARIABLE}, see docs/testing.md"
RUN_SECONDS = 90.0


def are_missing() -> bool:
    """Whether the environment does not say where the clients are."""
    return not (os.environ.get(VARIABLE) and os.environ.get(CHROMIUM_VARIABLE))


def installation() -> Path:
    """The directory with ``venv`` and ``node_modules``, absolute."""
    return Path(os.environ[VARIABLE]).absolute()


async def run(*command: str) -> tuple[int, str]:
    """A program's exit code and standard output; it is killed at the deadline."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    if process.returncode:
        output += errors
    return process.returncode, output.decode()


async def report_of(*command: str) -> Any:
    """What a program reports in its last line, which is JSON."""
    code, output = await run(*command)
    assert code == 0, output
    return json.loads(output.strip().splitlines()[-1])


async def python_program(name: str, *arguments: str) -> Any:
    """The report of a Python program."""
    return await report_of(str(installation() / "venv" / "bin" / "python"), str(PROGRAMS / name), *arguments)


async def node_program(name: str, *arguments: str) -> Any:
    """The report of a Node program, which finds its libraries in its first argument."""
    node = shutil.which("node")
    assert node is not None, "node is not installed"
    return await report_of(node, str(PROGRAMS / name), str(installation()), *arguments)
