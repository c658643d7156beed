"""``llmux checkpoint`` and ``restore`` with the real criu and simulated engines, and servers that use their images."""

import json
import os
import shutil
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmux.simulation.ledger import Ledger
from tests.support.command import Ended, run_llmux, write_config
from tests.support.processes import is_living, until
from tests.support.real_criu import CRIU, SKIP_REASON
from tests.support.server import LlmuxProcess, chat, http_client, llmux_server, simulated_config

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]


def configure(directory: Path, *flags: str, **model: Any) -> dict[str, Any]:
    """One model, ``m``, with a virtual GPU; in ``config.json`` too."""
    checkpoint = {"criu_path": CRIU, "images_dir": str(directory / "images")}
    models = {"m": {"extra_args": ["--startup-delay-ms", "300", *flags], **model}}
    config = simulated_config(models, ledger=directory / "gpu.json", checkpoint=checkpoint)
    write_config(directory, config)
    return config


async def made(directory: Path, *arguments: str) -> Any:
    """The report of ``llmux checkpoint m`` on the image that it made."""
    ended = await run_llmux("checkpoint", "m", "--json", *arguments, directory=directory)
    assert ended.code == 0, ended
    return ended.document


async def first_answer(server: LlmuxProcess) -> str:
    async with http_client() as session:
        async with session.post(f"{server.url}/v1/chat/completions", json=chat("m", "hello", temperature=0)) as answer:
            assert answer.status == 200, await answer.text()
            return str((await answer.json())["choices"][0]["message"]["content"])


@pytest.mark.parametrize("weights", ["retain", "offload", "discard"])
async def test_the_first_request_is_answered_from_the_image(tmp_path: Path, weights: str) -> None:
    configure(tmp_path)
    async with llmux_server(json.loads((tmp_path / "config.json").read_text()), tmp_path) as server:
        cold = await first_answer(server)
    checkpoint = await made(tmp_path, "--eviction", f"{weights}+checkpoint")
    assert checkpoint["gpu_mib"] == {"before": 900, "after": 0}
    assert checkpoint["host_mib"]["before"] > 0 and checkpoint["host_mib"]["after"] == 0
    assert checkpoint["answer"] == "4"
    config = configure(tmp_path, checkpoint_path=checkpoint["checkpoint_path"])
    async with llmux_server(config, tmp_path) as server:
        assert await first_answer(server) == cold
        assert server.find_in_log("restored .*model=m")
        assert not server.find_in_log("engine started")


async def test_the_printed_entry_can_be_pasted_into_the_configuration(tmp_path: Path) -> None:
    config = configure(tmp_path)
    ended = await run_llmux("--checkpoint", "m", "-c", "config.json", "--no-warmup", directory=tmp_path)
    assert ended.code == 0, ended
    path = tmp_path / "images" / "m" / "images"
    assert f'"checkpoint_path": "{path}"' in ended.output
    assert "putting it into its image" in ended.errors
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["eviction"] == "discard+checkpoint"
    assert manifest["is_durable"]
    entry = json.loads("{" + ended.output.splitlines()[-1] + "}")
    config["models"]["m"] |= entry
    write_config(tmp_path, config)
    assert (await run_llmux("check", directory=tmp_path)).code == 0


async def test_a_model_with_an_image_begins_checkpointed_and_needs_no_warm_up(tmp_path: Path) -> None:
    configure(tmp_path)
    config = configure(tmp_path, checkpoint_path=(await made(tmp_path))["checkpoint_path"]) | {"warmup": True}
    async with llmux_server(config, tmp_path) as server, http_client() as session:
        async with session.get(f"{server.url}/control/status") as answer:
            assert (await answer.json())["models"]["m"]["process_state"] == "checkpointed"
        assert not server.find_in_log("engine started|restored |warming up")


async def test_a_second_checkpoint_makes_a_new_image(tmp_path: Path) -> None:
    configure(tmp_path)
    manifest = Path((await made(tmp_path))["checkpoint_path"]) / "manifest.json"
    first = json.loads(manifest.read_text())
    await made(tmp_path)
    second = json.loads(manifest.read_text())
    assert second["created_at"] > first["created_at"]
    assert second["identity"] == first["identity"]


async def test_a_restored_engine_stays_until_its_shim_is_terminated(tmp_path: Path) -> None:
    configure(tmp_path)
    await made(tmp_path)
    ended = await run_llmux("restore", "m", "--json", directory=tmp_path)
    assert ended.code == 0, ended
    restored = ended.document
    family = [psutil.Process(restored["shim_pid"]), psutil.Process(restored["pid"])]
    try:
        assert restored["answer"] == "4"
        assert restored["memory"]["gpu_mib"] == 900
        assert ask(restored["port"]) == "4", "it runs without llmux"
        again = await run_llmux("restore", "m", directory=tmp_path)
        assert again.code == 1
        assert f"port {restored['port']} is taken" in again.errors
        assert ask(restored["port"]) == "4"
    finally:
        os.kill(restored["shim_pid"], signal.SIGTERM)
        await until(lambda: not any(is_living(one.pid) for one in family), "the end of engine and shim")
    assert no_port(restored["port"])


async def test_the_printed_pid_stops_a_restored_engine(tmp_path: Path) -> None:
    configure(tmp_path)
    await made(tmp_path, "--eviction", "retain+checkpoint")
    ended = await run_llmux("--restore-detached", "m", directory=tmp_path)
    assert ended.code == 0, ended
    shim = int(ended.output.splitlines()[-1].rpartition(" kill ")[2])
    assert is_living(shim)
    os.kill(shim, signal.SIGTERM)
    await until(lambda: not is_living(shim), "its end")
    assert "It answers: '4'" in ended.output


@pytest.mark.parametrize("damage", ["no manifest", "other arguments", "no image"])
async def test_an_unusable_image_is_refused_with_the_reason(tmp_path: Path, damage: str) -> None:
    configure(tmp_path)
    path = Path((await made(tmp_path))["checkpoint_path"])
    match damage:
        case "no manifest":
            (path / "manifest.json").unlink()
        case "other arguments":
            configure(tmp_path, "--max-num-seqs", "3")
        case _:
            shutil.rmtree(path)
    ended: Ended = await run_llmux("restore", "m", directory=tmp_path)
    assert ended.code == 1
    reasons = {"no manifest": "has no manifest", "other arguments": "out of date", "no image": "no such directory"}
    assert reasons[damage] in ended.errors
    assert "Traceback" not in ended.errors


async def test_a_server_starts_cold_where_the_image_has_no_manifest(tmp_path: Path) -> None:
    configure(tmp_path)
    path = Path((await made(tmp_path))["checkpoint_path"])
    (path / "manifest.json").unlink()
    async with llmux_server(configure(tmp_path, checkpoint_path=str(path)), tmp_path) as server:
        await first_answer(server)
        assert server.find_in_log("engine started .*model=m")
        assert server.find_in_log("no manifest")


async def test_validate_does_not_touch_the_images_that_serve(tmp_path: Path) -> None:
    configure(tmp_path)
    manifest = Path((await made(tmp_path))["checkpoint_path"]) / "manifest.json"
    before = manifest.read_text()
    policies = "retain+checkpoint,offload+checkpoint,discard+checkpoint"
    ended = await run_llmux("validate", "m", "--policies", policies, "--json", directory=tmp_path)
    assert ended.code == 0, ended
    assert [row["gpu_mib"]["asleep"] for row in ended.document["policies"]] == [0, 0, 0]
    assert manifest.read_text() == before
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["m"]


async def test_a_failed_dump_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    configure(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "m").write_text("not a directory")
    ended = await run_llmux("checkpoint", "m", directory=tmp_path)
    assert ended.code == 1
    assert "no image was made" in ended.errors
    assert "Traceback" not in ended.errors
    assert "images could not be written" in ended.errors
    assert Ledger(tmp_path / "gpu.json").snapshot().allocations == (), "the engine is gone"


def ask(port: int) -> str:
    """The engine's answer to the question of the probe."""
    body = chat("m", "What is 2 + 2?", temperature=0.0, seed=42)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def no_port(port: int) -> bool:
    """Whether nothing listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
