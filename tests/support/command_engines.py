"""A real llmux over servers that it knows only by their commands."""

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmux.simulation.ledger import Ledger
from tests.support import plain_server
from tests.support.bench import Bench, eventually
from tests.support.server import http_client, llmux_server

SERVER = (sys.executable, "-S", plain_server.__file__)
START = [*SERVER, "{port}", "{name}"]
MODEL = {"engine": "command", "start_command": START, "ready_path": "/ready"}


@asynccontextmanager
async def serving_commands(
    models: Mapping[str, Mapping[str, Any]], directory: Path, **top_level: Any
) -> AsyncIterator[Bench]:
    """A server over these models; at its end no temporary file may be left."""
    policy = {"policy_type": "fifo", "min_active_seconds": 0.0, **top_level.pop("policy", {})}
    config = {"port": 0, "metrics_port": 0, "policy": policy, "models": models, **top_level}
    with TemporaryDirectory(prefix="bench", dir="/tmp") as temporary:
        environment = {"TMPDIR": temporary}
        async with llmux_server(config, directory, environment=environment) as server, http_client() as session:
            yield Bench(server, session, Ledger(directory / "no-gpu.json"), Path(temporary))
        await eventually(lambda: not list(Path(temporary).iterdir()), f"no file left in {temporary}")


async def said(bench: Bench, model: str) -> tuple[str, int]:
    """Who answers a chat, and with which process."""
    name, pid = (await bench.ask(model)).said.split()
    return name, int(pid)
