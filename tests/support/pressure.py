"""A machine on which programs that are not ours take GPU memory without asking."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from llmux.simulation.gpus import LEDGER_VARIABLE
from llmux.simulation.ledger import Ledger
from tests.support.bench import OFFLOAD, SLOW, Bench, with_flags
from tests.support.server import http_client, llmux_server, simulated_config

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def machine(directory: Path, reserve: str) -> AsyncIterator[Bench]:
    """Two models of 900 MiB on a GPU of 1,000, of which each keeps 20 while it sleeps."""
    ledger = Ledger(directory / "gpu.json").create(1000)
    models = {name: with_flags(OFFLOAD, *SLOW) for name in "ab"}
    config = simulated_config(models, ledger=ledger.path, gpu_memory_reserve=reserve)
    variables = {LEDGER_VARIABLE: str(ledger.path)}
    async with llmux_server(config, directory, environment=variables) as server, http_client() as session:
        yield Bench(server, session, ledger, directory)
    assert not ledger.snapshot().refused


@asynccontextmanager
async def program(bench: Bench, mib: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    """One that has asked nobody, and holds so much by now."""
    command = [sys.executable, "-m", "tests.support.ledger_program", str(bench.ledger.path), str(mib)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()
