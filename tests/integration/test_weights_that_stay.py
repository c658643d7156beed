"""``retain+keep_running``: the KV caches take turns on a GPU that holds the weights of all models at once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.engine.text import expected_text
from llmux.simulation.ledger import Ledger
from tests.support.bench import SLOW, Bench, serving, with_flags
from tests.support.server import NO_CERTIFICATES, SIMULATED_ENGINE, chat, http_client, llmux_server

RETAIN = {"eviction": "retain+keep_running"}
ROUNDS = 4
AWAKE_MIB, ASLEEP_MIB = 600, 300
"""Half of what a simulated engine holds is its weights: two of them and one KV cache fit into 1,000 MiB."""
HALF = ("--sim-gpu-memory", str(AWAKE_MIB), "--sim-residue", "0")


def held(bench: Bench) -> dict[str, int]:
    """What each model holds of the virtual GPU."""
    return {allocation.model: allocation.mib for allocation in bench.ledger.snapshot().allocations}


async def test_models_take_turns_with_their_weights_on_the_gpu(tmp_path: Path) -> None:
    models = {name: with_flags(RETAIN, *HALF) for name in "ab"}
    async with serving(models, tmp_path) as bench:
        for number in range(ROUNDS):
            await bench.expect("a", f"question {number}")
            if number:
                assert held(bench) == {"a": AWAKE_MIB, "b": ASLEEP_MIB}
            await bench.expect("b", f"question {number}")
            assert held(bench) == {"a": ASLEEP_MIB, "b": AWAKE_MIB}
        for name in "ab":
            stats = await bench.stats(name)
            assert stats["garbage_tokens"] == stats["requests_while_asleep"] == stats["slept_under_requests"] == 0
        assert len(bench.server.find_in_log("engine started")) == 2
        assert not bench.server.find_in_log("eviction failed|offloaded too|GPU memory is not free")
        assert bench.ledger.snapshot().refused == ()


async def test_a_stream_is_frozen_while_its_weights_stay(tmp_path: Path) -> None:
    slow = with_flags({**RETAIN, "drain": "freeze"}, *HALF, *SLOW)
    models = {"slow": slow, "other": with_flags(RETAIN, *HALF)}
    async with serving(models, tmp_path, policy={"min_active_seconds": 0.2}) as bench, asyncio.TaskGroup() as tasks:
        await bench.expect("other")
        asking = tasks.create_task(bench.expect("slow", "a long story", max_tokens=60))
        await bench.until_model("slow", in_flight=1)
        await bench.expect("other", "in between")
        assert not asking.done(), "it was drained, not frozen"
        await asking
        assert (await bench.stats("slow"))["slept_under_requests"] == 0
        assert bench.ledger.snapshot().refused == ()


async def test_a_version_that_cannot_offloads_its_weights_too(tmp_path: Path) -> None:
    models = {name: with_flags(RETAIN, *HALF, "--sim-fault", "old-sleep") for name in "ab"}
    async with serving(models, tmp_path) as bench:
        for number in range(2):
            for model in "ab":
                await bench.expect(model, f"question {number}")
        assert held(bench) == {"a": 0, "b": AWAKE_MIB}
        assert bench.server.find_in_log("the weights are offloaded too.*cannot release its KV cache alone")
        assert bench.ledger.snapshot().refused == ()


async def test_an_engine_that_frees_nothing_is_stopped(tmp_path: Path) -> None:
    models = {"a": with_flags(RETAIN, *HALF, "--no-enable-sleep-mode"), "b": with_flags(RETAIN, *HALF)}
    async with serving(models, tmp_path, memory_wait_seconds=0.3) as bench:
        await bench.expect("a")
        await bench.expect("b")
        assert held(bench) == {"b": AWAKE_MIB}
        assert bench.server.find_in_log(f"it says that it has left, and holds {AWAKE_MIB} of its {AWAKE_MIB} MiB")
        assert bench.ledger.snapshot().refused == ()


@pytest.mark.parametrize("drain", ["wait", "freeze"])
async def test_sglangs_weights_stay_too(tmp_path: Path, drain: str) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    flags = ["--sim-gpu-ledger", str(ledger.path), "--sim-gpu-memory", str(AWAKE_MIB), "--sim-health-poll-ms", "10"]
    section: dict[str, Any] = {
        "engine": "sglang",
        "command": SIMULATED_ENGINE,
        "extra_args": [*flags, "--latency-ms", "1", "--sim-free-ms", "50", "--sim-worker"],
        "env": {**NO_CERTIFICATES, "LLMUX_SIM_KIND": "sglang"},
        "drain": drain,
        **RETAIN,
    }
    config = {
        "port": 0,
        "metrics_port": 0,
        "policy": {"policy_type": "fifo", "min_active_seconds": 0.0},
        "models": {name: {**section, "model_path": f"models/{name}"} for name in "ab"},
    }
    async with llmux_server(config, tmp_path) as server, http_client() as session:
        for number in range(ROUNDS):
            for model in "ab":
                body = chat(model, f"question {number}", max_tokens=4)
                async with session.post(f"{server.url}/v1/chat/completions", json=body) as answer:
                    document = await answer.json()
                assert document["choices"][0]["message"]["content"] == expected_text(model, f"question {number}", 4)
        assert not server.find_in_log("eviction failed|engine.*ended")
        assert {one.model: one.mib for one in ledger.snapshot().allocations} == {"a": ASLEEP_MIB, "b": AWAKE_MIB}
    assert ledger.snapshot().refused == ()
