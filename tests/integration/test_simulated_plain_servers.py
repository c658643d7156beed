"""Simulated servers that only embed, or only paint: what is OpenAI-compatible and cannot sleep."""

import base64
import socket
from pathlib import Path

from llmux.simulation.engine.text import embedding, image
from llmux.simulation.ledger import Ledger
from tests.support.simulated_engine import eventually, launched, stand_in


async def test_embeddings_and_nothing_else(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    async with stand_in("embeddings", "--model", "m", "--sim-gpu-ledger", str(ledger.path)) as server:
        assert ledger.snapshot().used_mib == 100
        assert (await server.get("/health"))[0] == 200
        assert [one["id"] for one in (await server.get("/v1/models"))[1]["data"]] == ["m"]
        _, body = await server.post("/v1/embeddings", {"model": "m", "input": ["a"]})
        assert body["data"][0]["embedding"] == embedding("m", "a")
        assert (await server.post("/v1/embeddings", {"model": "other", "input": "a"}))[0] == 404
        assert (await server.ask("hi"))[0] == 404
        assert (await server.post("/sleep"))[0] == 404
        server.process.terminate()
        assert await server.exit_code() == 0
    assert ledger.snapshot().used_mib == 0


async def test_images() -> None:
    async with stand_in("images", "--model", "m", "--api-key", "k") as server:
        headers = {"Authorization": "Bearer k"}
        body = {"model": "m", "prompt": "a cat", "n": 2}
        assert (await server.post("/v1/images/generations", body))[0] == 401
        _, answer = await server.post("/v1/images/generations", body, headers=headers)
        pictures = [base64.b64decode(one["b64_json"]) for one in answer["data"]]
        assert pictures == [image("m", "a cat")] * 2
        assert (await server.post("/v1/images/generations", {"model": "m"}, headers=headers))[0] == 400


async def test_nothing_listens_before_the_model_is_loaded(tmp_path: Path, unused_ports: tuple[int, int]) -> None:
    port, _ = unused_ports
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    memory = ("--sim-gpu-ledger", str(ledger.path), "--sim-gpu-memory", "300")
    words = ("--sim-kind", "embeddings", "--model", "m", "--port", str(port), "--startup-delay-ms", "500")
    async with launched(*words, *memory) as server:

        async def loading() -> bool:
            return ledger.snapshot().used_mib == 300

        await eventually(loading, "memory of a model that is loading")
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0

        async def listens() -> bool:
            return server.stdout() == f"READY {port}\n"

        await eventually(listens, "a server that listens")


async def test_too_little_memory_ends_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    memory = ("--sim-gpu-ledger", str(ledger.path), "--sim-gpu-memory", "1001")
    async with launched("--sim-kind", "images", "--model", "m", "--port", "0", *memory) as server:
        assert await server.exit_code() == 1
        assert "torch.OutOfMemoryError" in server.stderr()


async def test_a_flag_of_vllms_ends_it() -> None:
    async with launched("--sim-kind", "embeddings", "--model", "m", "--enable-sleep-mode") as server:
        assert await server.exit_code() == 2


async def test_the_kind_may_be_in_the_environment_and_has_to_be_one() -> None:
    async with launched("--model", "m", "--port", "0", environment={"LLMUX_SIM_KIND": "nonsense"}) as server:
        assert await server.exit_code() == 2
        assert "--sim-kind is one of vllm, sglang" in server.stderr()
