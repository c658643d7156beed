"""Adapters of a real llama-server as models of their own: answers as from the server that has only that adapter."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.integration.llama.test_real_llama import ask, config, question, section
from tests.support import gguf_files, real_llama
from tests.support.server import http_client, llmux_server

pytestmark = [
    pytest.mark.llama,
    pytest.mark.anyio,
    pytest.mark.skipif(bool(real_llama.MISSING), reason=real_llama.SKIP_REASON),
]

WIDTH, LAYERS, RANK = 64, 2, 4
"""Of the tiny model ``a``."""
ROUNDS = 6


def write_adapter(path: Path, seed: int) -> Path:
    """An adapter that changes most answers."""
    chosen = random.Random(seed)
    tensors = []
    for layer in range(LAYERS):
        name = f"blk.{layer}.attn_output.weight"
        for end, shape in (("lora_a", (WIDTH, RANK)), ("lora_b", (RANK, WIDTH))):
            values = [chosen.gauss(0.0, 0.5) for _ in range(WIDTH * RANK)]
            tensors.append(gguf_files.f32(f"{name}.{end}", shape, values))
    metadata: gguf_files.Metadata = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(RANK),
    }
    return gguf_files.write(path, metadata, tensors)


async def answers(url: str, model: str) -> list[str]:
    async with http_client() as session:
        return [await ask(session, url, question(model, number, max_tokens=12)) for number in range(ROUNDS)]


@pytest.mark.timeout(600)
async def test_each_adapter_answers_as_it_does_alone_whatever_was_asked_before(tmp_path: Path) -> None:
    adapters = {name: write_adapter(tmp_path / f"{name}.gguf", seed) for seed, name in enumerate(("sql", "chat"))}
    alone = {}
    for name, file in (("a", None), *adapters.items()):
        arguments = ("-np", "1", *(() if file is None else ("--lora", str(file))))
        async with real_llama.running(real_llama.model_path("a"), *arguments, directory=tmp_path) as server:
            alone[name] = await answers(server.url, name)
    assert len({tuple(texts) for texts in alone.values()}) == 3, "the adapters change nothing"
    model: dict[str, Any] = {"adapters": {name: str(file) for name, file in adapters.items()}, "canary_adapter": "sql"}
    models = {"a": section("a", **model), "b": section("b")}
    async with llmux_server(config(tmp_path, models), tmp_path) as server, http_client() as session:
        for number in range(ROUNDS):
            # The same prompt with another adapter before it: what the slot holds must not be used.
            for name in ("a", "sql", "chat", "a", "chat", "sql"):
                body = question(name, number, max_tokens=12)
                assert await ask(session, server.url, body) == alone[name][number], (name, number)
            await ask(session, server.url, question("b", number, max_tokens=2))
