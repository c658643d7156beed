"""A wake waits until the GPU's memory is really free, but not for ever, and ends nobody who holds it."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmux.simulation.ledger import Ledger
from tests.support.server import LlmuxProcess, chat, http_client, llmux_server, simulated_config

SLEEPER = "offload+keep_running"


@contextmanager
def stranger(ledger: Ledger, mib: int) -> Iterator[int]:
    """A process of somebody else that holds memory of the GPU."""
    process = subprocess.Popen((sys.executable, "-S", "-c", "import signal; signal.pause()"))
    try:
        ledger.allocate(process.pid, mib, "stranger")
        yield process.pid
        assert process.poll() is None, "what is not llmux's was ended"
    finally:
        process.kill()
        process.wait()


async def ask(server: LlmuxProcess, model: str) -> int:
    async with http_client() as session:
        async with session.post(f"{server.url}/v1/chat/completions", json=chat(model, "hello")) as answer:
            await answer.read()
            return answer.status


async def test_a_start_and_a_wake_wait_for_memory_that_somebody_gives_back_late(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    small = {"eviction": SLEEPER, "extra_args": ["--sim-gpu-memory", "500"]}
    models = {"large": {"eviction": SLEEPER}, "small": small}
    async with llmux_server(simulated_config(models, ledger=ledger.path, memory_wait_seconds=30.0), tmp_path) as server:
        for kind in ("start", "wake"):
            with stranger(ledger, 450) as pid:
                async with asyncio.TaskGroup() as tasks:
                    answer = tasks.create_task(ask(server, "large"))
                    await _until_waiting(server, ledger, "large")
                    assert not answer.done(), kind
                    ledger.release(pid)
                assert answer.result() == 200, kind
            assert await ask(server, "small") == 200
        assert ledger.snapshot().refused == ()
        assert not server.find_in_log("GPU memory is not free")


async def _until_waiting(server: LlmuxProcess, ledger: Ledger, model: str) -> None:
    """Until the model is being woken, and the one before it has left: what remains is the stranger's."""
    async with http_client() as session, asyncio.timeout(20):
        while True:
            async with session.get(f"{server.url}/control/status") as answer:
                state = (await answer.json())["state"]
            held = [allocation for allocation in ledger.snapshot().allocations if allocation.mib > 100]
            if state.endswith(f"->{model}") and [allocation.model for allocation in held] == ["stranger"]:
                break
            await asyncio.sleep(0.01)
    # Long enough for an engine that does not wait to have been refused its memory.
    await asyncio.sleep(0.5)


async def test_what_stays_taken_is_named_in_a_warning(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    config = simulated_config({"a": {"eviction": SLEEPER}}, ledger=ledger.path, memory_wait_seconds=0.3)
    with stranger(ledger, 500) as pid:
        async with llmux_server(config, tmp_path) as server:
            assert await ask(server, "a") == 503
            (warning, *_) = server.find_in_log(r"GPU memory is not free.*")
            assert f"stranger (pid {pid}, 500 MiB)" in warning[0]
            assert "900 MiB needed, 500 free" in warning[0]
            ledger.release(pid)
