"""llmux over the simulated SGLang, which answers before its memory is free and dies of any wrong call."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.engine.text import expected_text
from llmux.simulation.ledger import Ledger
from tests.support.server import NO_CERTIFICATES, SIMULATED_ENGINE, chat, http_client, llmux_server

ROUNDS = 4


def config(ledger: Path, eviction: str, **model: Any) -> dict[str, Any]:
    """Two models of which the virtual GPU holds one."""
    Ledger(ledger).create(1000)
    flags = ["--mem-fraction-static", "0.9", "--sim-gpu-ledger", str(ledger), "--sim-free-ms", "200"]
    section = {
        "engine": "sglang",
        "command": SIMULATED_ENGINE,
        "extra_args": [*flags, "--latency-ms", "1", "--token-ms", "20", "--sim-health-poll-ms", "10", "--sim-worker"],
        "env": {**NO_CERTIFICATES, "LLMUX_SIM_KIND": "sglang"},
        "eviction": eviction,
        **model,
    }
    return {
        "port": 0,
        "metrics_port": 0,
        "policy": {"policy_type": "fifo", "min_active_seconds": 0.0},
        "models": {name: {**section, "model_path": f"models/{name}"} for name in "ab"},
    }


@pytest.mark.parametrize("eviction", ["offload+keep_running", "discard+keep_running"])
async def test_models_take_turns_though_memory_is_freed_late(tmp_path: Path, eviction: str) -> None:
    ledger = tmp_path / "gpu.json"
    async with llmux_server(config(ledger, eviction), tmp_path) as server, http_client() as session:
        for number in range(ROUNDS):
            for model in "ab":
                body = chat(model, f"question {number}", max_tokens=4)
                async with session.post(f"{server.url}/v1/chat/completions", json=body) as answer:
                    document = await answer.json()
                assert document["choices"][0]["message"]["content"] == expected_text(model, f"question {number}", 4)
        assert not server.find_in_log("eviction failed|engine.*ended")
    assert Ledger(ledger).snapshot().refused == ()


@pytest.mark.parametrize("version", ["0.5.5", "0.5.10"])
async def test_a_version_that_cannot_retract_is_drained(tmp_path: Path, version: str) -> None:
    """One aborts the requests and says 200, the other dies when its memory is released."""
    frozen = config(tmp_path / "gpu.json", "offload+keep_running", drain="freeze")
    for section in frozen["models"].values():
        section["env"] |= {"LLMUX_SIM_VERSION": version}
    async with llmux_server(frozen, tmp_path) as server, http_client() as session:
        body = chat("a", "a story", stream=True, max_tokens=30)
        async with session.post(f"{server.url}/v1/chat/completions", json=body) as stream:
            begun = await stream.content.readuntil(b"\n\n")
            async with session.post(f"{server.url}/v1/chat/completions", json=chat("b", "hello")) as other:
                assert other.status == 200
            text = (begun + await stream.content.read()).decode()
        assert "".join(re.findall(r'"content": ?"([^"]*)"', text)) == expected_text("a", "a story", 30)
        assert text.rstrip().endswith("data: [DONE]")
        assert server.find_in_log("cannot freeze its requests")
        assert not server.find_in_log("eviction failed|engine.*ended")


@pytest.mark.parametrize("eviction", ["offload+keep_running", "discard+keep_running"])
@pytest.mark.parametrize("version", ["0.5.9", "0.5.23"])
async def test_a_stream_is_retracted_by_a_switch_and_comes_back_whole(
    tmp_path: Path, version: str, eviction: str
) -> None:
    ledger = tmp_path / "gpu.json"
    frozen = config(ledger, eviction, drain="freeze")
    for section in frozen["models"].values():
        section["env"] |= {"LLMUX_SIM_VERSION": version}
    async with llmux_server(frozen, tmp_path) as server, http_client() as session:
        body = chat("a", "a long story", stream=True, max_tokens=100)
        async with session.post(f"{server.url}/v1/chat/completions", json=body) as stream:
            begun = await stream.content.readuntil(b"\n\n")
            async with asyncio.TaskGroup() as tasks:
                rest = tasks.create_task(stream.content.read())
                async with session.post(f"{server.url}/v1/chat/completions", json=chat("b", "hello")) as other:
                    assert other.status == 200
                assert not rest.done(), "the stream was drained, not frozen"
        text = (begun + rest.result()).decode()
        assert text.rstrip().endswith("data: [DONE]")
        assert '"error"' not in text
        said = "".join(re.findall(r'"content": ?"([^"]*)"', text))
        assert said == expected_text("a", "a long story", 100)
