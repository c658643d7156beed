"""Images of real engines in an object store: another machine starts from them; whatever is wrong costs a cold start.

Another machine is another images directory, when the first llmux has ended: an engine's pids must be free.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import OFFLOAD, Bench, eventually, serving
from tests.support.command import run_llmux, write_config
from tests.support.processes import is_living
from tests.support.real_criu import CRIU, SKIP_REASON
from tests.support.server import simulated_config

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]

MODELS = {"a": {"eviction": "discard+checkpoint"}, "b": OFFLOAD}


def section(directory: Path, machine: str, **store: Any) -> dict[str, Any]:
    described = store or {"url": f"file://{directory}/bucket"}
    return {"criu_path": CRIU, "images_dir": str(directory / machine), "object_store": described}


async def dumped_and_uploaded(bench: Bench) -> None:
    await bench.expect("a")
    await bench.expect("b")
    await bench.server.wait_for_log("upload is complete .*model=a")


def serving_on(directory: Path, machine: str, **more: Any) -> Any:
    (directory / "gpu.json").unlink(missing_ok=True)
    return serving(MODELS, directory, checkpoint=section(directory, machine), **more)


async def test_another_machine_starts_from_the_stored_image(tmp_path: Path) -> None:
    async with serving_on(tmp_path, "here") as bench:
        await dumped_and_uploaded(bench)
    async with serving_on(tmp_path, "there") as bench:
        await bench.expect("a", "elsewhere")
        assert (bench.starts("a"), len(bench.server.find_in_log("restored .*model=a"))) == (0, 1)
        assert bench.server.find_in_log("download is complete .*model=a")
        await bench.expect("b")
        await bench.expect("a", "again")
        assert not bench.server.find_in_log("dumped .*model=a"), "the downloaded image is used again"
        assert not bench.server.find_in_log("upload begins")


@pytest.mark.parametrize("damage", ["a flipped byte", "no manifest", "nothing stored"])
async def test_a_stored_image_that_is_damaged_costs_a_cold_start(tmp_path: Path, damage: str) -> None:
    if damage != "nothing stored":
        async with serving_on(tmp_path, "here") as bench:
            await dumped_and_uploaded(bench)
    match damage:
        case "a flipped byte":
            (part,) = tmp_path.glob("bucket/a/images/*/*/part-00000")
            content = bytearray(part.read_bytes())
            content[len(content) // 2] ^= 1
            part.write_bytes(content)
        case "no manifest":
            (manifest,) = tmp_path.glob("bucket/a/images/*/*/manifest.json")
            manifest.unlink()
    async with serving_on(tmp_path, "there") as bench:
        await bench.expect("a", "elsewhere")
        assert bench.starts("a") == 1
        reason = "part-00000 is damaged" if damage == "a flipped byte" else "has no image for this configuration"
        assert bench.server.find_in_log(f"no image to start from .*{reason}")
        await bench.expect("b")
        await bench.server.wait_for_log("upload is complete .*model=a")


async def test_a_local_image_that_was_lost_is_fetched_again(tmp_path: Path) -> None:
    async with serving_on(tmp_path, "here") as bench:
        await dumped_and_uploaded(bench)
        (tmp_path / "here" / "a" / "images").rename(tmp_path / "lost")
        await bench.expect("a", "again")
        assert bench.starts("a") == 1
        assert bench.server.find_in_log("download is complete .*model=a")


async def test_an_unreachable_store_costs_no_answer(tmp_path: Path) -> None:
    keys = {"endpoint": "http://127.0.0.1:9", "bucket": "b", "access_key": "hidden-key", "secret_key": "hidden-secret"}
    (tmp_path / "gpu.json").unlink(missing_ok=True)
    async with serving(MODELS, tmp_path, checkpoint=section(tmp_path, "here", **keys)) as bench:
        await bench.expect("a")
        await bench.expect("b")
        await bench.server.wait_for_log("upload failed .*model=a")
        await bench.expect("a", "again")
        assert bench.starts("a") == 1, "from the local image"
    assert not bench.server.find_in_log("hidden-")


async def test_the_commands_use_the_store(tmp_path: Path) -> None:
    config = simulated_config({"m": {}}, checkpoint=section(tmp_path, "here"))
    write_config(tmp_path, config)
    made = await run_llmux("checkpoint", "m", directory=tmp_path)
    assert made.code == 0, made
    assert f"file://{tmp_path}/bucket/m/images/" in made.output
    assert "upload of" in made.errors
    write_config(tmp_path, {**config, "checkpoint": section(tmp_path, "there")})
    restored = await run_llmux("restore", "m", "--json", directory=tmp_path)
    assert restored.code == 0, restored
    document = json.loads(restored.output)
    assert document["path"] == str(tmp_path / "there" / "m" / "images")
    os.kill(document["shim_pid"], signal.SIGTERM)
    await eventually(lambda: not is_living(document["shim_pid"]), "the shim's end")


async def test_a_budget_for_images_costs_downloads_and_never_an_engine(tmp_path: Path) -> None:
    models = {name: {"eviction": "discard+checkpoint"} for name in "ab"}
    checkpoint = {**section(tmp_path, "here"), "images_budget": "1MB"}
    async with serving(models, tmp_path, checkpoint=checkpoint) as bench:
        for number in range(6):
            await bench.expect("ab"[number % 2], f"question {number}")
        assert bench.starts("a") == bench.starts("b") == 1
        await bench.server.wait_for_log("image given up for images_budget .*model=a")
        await eventually(lambda: not (tmp_path / "here" / "a" / "images").exists(), "the end of the image")
        await bench.expect("a", "from the store")
        assert bench.starts("a") == 1
        assert bench.server.find_in_log("download is complete .*model=a")
        images = (await bench.status())["models"]["b"]["images"]
        assert images["stored_at"] == f"file://{tmp_path}/bucket/b/images/"
        metrics = (await bench.call("GET /metrics")).text
        assert 'llmux_image_transfers_total{direction="upload",model="b"}' in metrics


async def test_without_a_store_the_only_copy_of_an_engine_stays(tmp_path: Path) -> None:
    checkpoint = {"criu_path": CRIU, "images_dir": str(tmp_path / "here"), "images_budget": "1MB"}
    async with serving(MODELS, tmp_path, checkpoint=checkpoint) as bench:
        await bench.expect("a")
        await bench.expect("b")
        await bench.server.wait_for_log("images exceed images_budget")
        await bench.expect("a", "again")
        assert bench.starts("a") == 1
        await bench.server.wait_for_log("image given up for images_budget .*model=a")
        await bench.expect("b")
        assert len(bench.server.find_in_log("dumped .*model=a")) == 2
