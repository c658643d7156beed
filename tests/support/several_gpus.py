"""A server over several virtual GPUs, each with a ledger of its own."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llmux.simulation.ledger import Ledger
from tests.support.bench import Bench
from tests.support.server import http_client, llmux_server, simulated_config

STOP = "retain+stop"


def model(mib: int, **more: Any) -> dict[str, Any]:
    """A model's settings."""
    return {"eviction": STOP, "gpu_memory": f"{mib}MiB", **more}


@asynccontextmanager
async def gpus(
    directory: Path,
    models: Mapping[str, Mapping[str, Any]],
    *capacity_mib: int,
    waits_until_ready: bool = True,
    **top_level: Any,
) -> AsyncIterator[Bench]:
    """A server over so many virtual GPUs, each with a ledger of its own. Nothing may ever be over-committed."""
    ledgers = [Ledger(directory / f"gpu-{number}.json").create(mib) for number, mib in enumerate(capacity_mib)]
    sized = {
        name: {
            **settings,
            "extra_args": [
                *("--sim-gpu-ledger", str(directory / "gpu-{gpu}.json")),
                *("--sim-gpu-memory", settings["gpu_memory"].removesuffix("MiB")),
                *settings.get("extra_args", ()),
            ],
        }
        for name, settings in models.items()
    }
    # What is remembered of engines must not outlast the test.
    top_level = {"cache_dir": str(directory / "cache"), **top_level}
    config = simulated_config(sized, gpus=[{"memory": mib << 20} for mib in capacity_mib], **top_level)
    running = llmux_server(config, directory, waits_until_warm=waits_until_ready)
    async with running as server, http_client() as session:
        yield Bench(server, session, ledgers[0], directory)
    for ledger in ledgers:
        book = ledger.snapshot()
        assert not book.refused, "more was asked for than was free"
        assert not book.allocations


def resident(directory: Path, number: int) -> set[str]:
    """The models that hold memory of a GPU."""
    return {one.model for one in Ledger(directory / f"gpu-{number}.json").snapshot().allocations if one.mib}
