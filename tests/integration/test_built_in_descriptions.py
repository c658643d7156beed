"""Kinds that llmux comes with as descriptions, under llmux, over stand-ins for their programs."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp

from llmux.simulation.ledger import Ledger
from tests.support.server import (
    SIMULATED_ENGINE,
    LlmuxProcess,
    chat,
    http_client,
    llmux_server,
    simulated_config,
)

WORKFLOW = {"9": {"class_type": "SaveImage", "inputs": {}}}
MAIN = """
import sys
from llmux.simulation.engine.main import main
sys.argv[1:1] = ["--sim-kind", "comfyui"]
main()
"""


def comfyui(directory: Path, ledger: Path, prompt_ms: int) -> dict[str, Any]:
    """A model whose ``main.py`` is the simulated ComfyUI."""
    program = directory / "comfyui"
    program.mkdir()
    (program / "main.py").write_text(MAIN)
    memory = ["--sim-gpu-ledger", str(ledger), "--sim-gpu-memory", "900", "--sim-residue", "50"]
    return {
        "engine": "comfyui",
        "model_path": str(program),
        "command": sys.executable,
        "eviction": "discard+keep_running",
        "extra_args": [*memory, "--sim-prompt-ms", str(prompt_ms)],
    }


def config(directory: Path, images: dict[str, Any], ledger: Path) -> dict[str, Any]:
    """The image server beside a simulated vLLM; the virtual GPU holds one of them."""
    made = simulated_config({"chat": {"eviction": "offload+keep_running"}}, ledger=ledger)
    made["models"]["images"] = images
    return made


async def paint(session: aiohttp.ClientSession, server: LlmuxProcess) -> str:
    """The identifier of a prompt that was accepted; the work goes on."""
    async with session.post(f"{server.url}/upstream/images/prompt", json={"prompt": WORKFLOW}) as answer:
        document = await answer.json()
        assert answer.status == 200, document
        return str(document["prompt_id"])


async def ask(session: aiohttp.ClientSession, server: LlmuxProcess) -> None:
    async with session.post(f"{server.url}/v1/chat/completions", json=chat("chat", "hello")) as answer:
        assert answer.status == 200, await answer.text()


async def test_a_switch_waits_for_images_whose_requests_have_been_answered(tmp_path: Path) -> None:
    ledger = tmp_path / "gpu.json"
    images = comfyui(tmp_path, ledger, prompt_ms=400)
    async with llmux_server(config(tmp_path, images, ledger), tmp_path) as server, http_client() as session:
        for _ in range(2):
            prompts = [await paint(session, server) for _ in range(2)]
            await ask(session, server)
            # It has left, by its own call, and lives on with its history.
            await paint(session, server)
            async with session.get(f"{server.url}/upstream/images/history") as answer:
                history = await answer.json()
            assert set(prompts) <= history.keys(), "work was cut off by a switch"
            assert {history[prompt]["status"]["status_str"] for prompt in prompts} == {"success"}
        assert not server.find_in_log("eviction failed")
    assert Ledger(ledger).snapshot().refused == ()


async def test_its_page_wakes_nothing_and_is_seen_while_it_serves(tmp_path: Path) -> None:
    ledger = tmp_path / "gpu.json"
    images = comfyui(tmp_path, ledger, prompt_ms=1)
    async with llmux_server(config(tmp_path, images, ledger), tmp_path) as server, http_client() as session:
        async with session.get(f"{server.url}/upstream/images/assets/index.js") as answer:
            assert answer.status == 503
        assert not server.find_in_log("engine started")
        await paint(session, server)
        async with session.get(f"{server.url}/upstream/images/assets/index.js") as answer:
            assert (answer.status, answer.content_type) == (200, "text/javascript")
        async with session.post(f"{server.url}/upstream/images/free", json={}) as answer:
            assert answer.status == 403


async def test_ollama_unloads_by_its_own_call(tmp_path: Path) -> None:
    ledger = tmp_path / "gpu.json"
    models = {
        "m": {
            "engine": "ollama",
            "model_path": "m",
            "eviction": "discard+keep_running",
            "command": SIMULATED_ENGINE,
            "env": {"LLMUX_SIM_KIND": "ollama", "LLMUX_SIM_LEDGER": str(ledger)},
            "extra_args": ["--sim-models", "m=900"],
        }
    }
    made = simulated_config({"chat": {"eviction": "offload+keep_running"}}, ledger=ledger)
    made["models"] |= models
    async with llmux_server(made, tmp_path) as server, http_client() as session:
        for _ in range(2):
            async with session.post(f"{server.url}/v1/chat/completions", json=chat("m", "hello")) as answer:
                assert answer.status == 200, await answer.text()
            await ask(session, server)
        assert not server.find_in_log("eviction failed")
        async with asyncio.timeout(10):
            while any(one.model == "m" and one.mib > 100 for one in Ledger(ledger).snapshot().allocations):
                await asyncio.sleep(0.05)
    assert Ledger(ledger).snapshot().refused == ()
