"""llmux serve with real images: switches, unusable images, and requests frozen in an image."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.engine.text import expected_text
from tests.support.bench import OFFLOAD, SLOW, Bench, serving, with_flags
from tests.support.real_criu import CRIU, SKIP_REASON, small_file_system
from tests.support.server import ended_early, simulated_config

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]

DISCARD_IMAGE = {"eviction": "discard+checkpoint"}
OFFLOAD_IMAGE = {"eviction": "offload+checkpoint"}
RETAIN_IMAGE = {"eviction": "retain+checkpoint"}


def section(directory: Path, **more: Any) -> dict[str, Any]:
    return {"criu_path": CRIU, "images_dir": str(directory), **more}


def dumps(bench: Bench) -> int:
    return len(bench.server.find_in_log("dumped "))


def restores(bench: Bench) -> int:
    return len(bench.server.find_in_log("restored "))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system smaller than an engine's memory."""
    with small_file_system(tmp_path / "small", 4) as directory:
        yield directory


@pytest.mark.parametrize("settings", [DISCARD_IMAGE, OFFLOAD_IMAGE, RETAIN_IMAGE], ids=lambda one: one["eviction"])
async def test_models_are_switched_by_restoring_their_images(settings: dict[str, str], tmp_path: Path) -> None:
    models = {name: with_flags(settings, "--sim-reload-ms", "1") for name in "ab"}
    async with serving(models, tmp_path, checkpoint=section(tmp_path / "images")) as bench:
        for number in range(8):
            await bench.expect("ab"[number % 2], f"question {number}")
        assert bench.starts("a") == bench.starts("b") == 1
        assert dumps(bench) == 2, "with a kept image, later evictions only stop the engine"
        assert restores(bench) == 6
        assert await bench.process_state("a") == "checkpointed"
        assert (await bench.stats("b"))["garbage_tokens"] == 0


async def test_without_keep_images_each_dump_is_new_and_deleted_after_its_restore(tmp_path: Path) -> None:
    models = {"a": DISCARD_IMAGE, "b": OFFLOAD}
    checkpoint = section(tmp_path / "images", keep_images=False)
    async with serving(models, tmp_path, checkpoint=checkpoint) as bench:
        for number in range(6):
            await bench.expect("ab"[number % 2], f"question {number}")
        assert (dumps(bench), restores(bench)) == (3, 2)
        await bench.expect("a")
        assert not (tmp_path / "images" / "a" / "images").exists()


@pytest.mark.parametrize("damage", ["manifest", "truncated", "gone"])
async def test_an_unusable_image_costs_a_cold_start_and_no_answer(damage: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    async with serving({"a": DISCARD_IMAGE, "b": OFFLOAD}, tmp_path, checkpoint=section(images)) as bench:
        await bench.expect("a")
        await bench.expect("b")
        image = images / "a" / "images"
        match damage:
            case "manifest":
                (image / "manifest.json").unlink()
            case "truncated":
                pages = max(image.glob("pages-*.img"), key=lambda file: file.stat().st_size)
                pages.write_bytes(pages.read_bytes()[:-4096])
            case "gone":
                image.rename(images / "elsewhere")
        await bench.expect("a", "after the damage")
        assert bench.starts("a") == 2
        await bench.expect("b")
        await bench.expect("a", "from a new image")
        assert (bench.starts("a"), dumps(bench)) == (2, 2)


async def test_a_kept_image_is_reused_only_for_an_engine_that_would_be_the_same(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"first")
    models = {"a": {**DISCARD_IMAGE, "model_path": str(weights)}, "b": OFFLOAD}
    async with serving(models, tmp_path, checkpoint=section(tmp_path / "images")) as bench:
        await bench.expect("a")
        await bench.expect("b")
        retain = {"model": "a", "eviction": {"weights": "retain", "process": "checkpoint"}}
        assert (await bench.call("POST /control/eviction", retain)).status == 200
        await bench.expect("a")
        await bench.expect("b")
        assert (dumps(bench), restores(bench)) == (2, 1), "an image of another eviction is not reused"
        (weights / "model.safetensors").write_bytes(b"second")
        await bench.expect("a", "with new weights")
        assert bench.starts("a") == 2
        assert bench.server.find_in_log("it is out of date")


async def test_frozen_images_of_a_killed_llmux_are_deleted(tmp_path: Path) -> None:
    left = tmp_path / "images" / "a" / "frozen"
    left.mkdir(parents=True, mode=0o700)
    (left / "pages-1.img").write_bytes(b"prompts")
    async with serving({"a": DISCARD_IMAGE}, tmp_path, checkpoint=section(tmp_path / "images")):
        assert not left.exists()


async def test_a_shutdown_does_not_wait_for_a_dump(tmp_path: Path) -> None:
    slow = tmp_path / "slow-criu"
    slow.write_text(f'#!/bin/sh\n[ "$1" = dump ] && exec sleep 600\nexec {CRIU} "$@"\n')
    slow.chmod(0o755)
    checkpoint = section(tmp_path / "images") | {"criu_path": str(slow)}
    async with serving({"a": DISCARD_IMAGE, "b": OFFLOAD}, tmp_path, checkpoint=checkpoint) as bench:
        await bench.expect("a")
        waiting = await bench.begin("b")
        await bench.until_internal_state("a", "evicting")
        assert await bench.server.terminate(20.0) == 0
        waiting.leave()


async def test_a_taken_process_id_costs_a_cold_start_and_no_answer(tmp_path: Path) -> None:
    async with serving({"a": DISCARD_IMAGE, "b": OFFLOAD}, tmp_path, checkpoint=section(tmp_path / "images")) as bench:
        await bench.expect("a")
        manifest = tmp_path / "images" / "a" / "images" / "manifest.json"
        await bench.expect("b")
        document = json.loads(manifest.read_text())
        document["tids"].append(bench.server.process.pid)
        manifest.write_text(json.dumps(document))
        await bench.expect("a", "cold")
        assert bench.starts("a") == 2
        assert bench.server.find_in_log("needs the process number")
        assert bench.server.process.returncode is None, "the process with that id is not harmed"


async def test_an_engine_whose_image_cannot_be_written_sleeps_instead(small_disk: Path, tmp_path: Path) -> None:
    models = {"a": with_flags(RETAIN_IMAGE, "--sim-hold-memory", "32"), "b": OFFLOAD}
    async with serving(models, tmp_path, checkpoint=section(small_disk)) as bench:
        await bench.expect("a")
        await bench.expect("b")
        assert await bench.process_state("a") == "sleeping:Offload+KeepRunning"
        await bench.expect("a", "again")
        assert (bench.starts("a"), dumps(bench)) == (1, 0)
        assert bench.server.find_in_log("no image was made, the engine sleeps instead")


async def test_a_sleeping_engine_is_dumped_and_stopping_it_deletes_the_image(tmp_path: Path) -> None:
    images = tmp_path / "images"
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path, checkpoint=section(images)) as bench:
        await bench.expect("a")
        await bench.expect("b")
        deeper = {"model": "a", "eviction": {"weights": "offload", "process": "checkpoint"}}
        assert (await bench.call("POST /control/sleep", deeper)).status == 200
        assert await bench.process_state("a") == "checkpointed"
        await bench.expect("a", "back from the image")
        assert (bench.starts("a"), restores(bench)) == (1, 1)
        assert (await bench.call("POST /control/sleep", deeper)).status == 200
        stop = {"model": "a", "eviction": {"weights": "retain", "process": "stop"}}
        assert (await bench.call("POST /control/sleep", stop)).status == 200
        assert await bench.process_state("a") == "not_started"
        assert not (images / "a").exists()
        await bench.expect("a", "cold")
        assert bench.starts("a") == 2


@pytest.mark.parametrize("settings", [DISCARD_IMAGE, RETAIN_IMAGE], ids=lambda one: one["eviction"])
async def test_a_stream_frozen_in_an_image_is_completed(settings: dict[str, str], tmp_path: Path) -> None:
    models = {"slow": with_flags({**settings, "drain": "freeze"}, *SLOW), "other": OFFLOAD}
    images = tmp_path / "images"
    policy = {"min_active_seconds": 0.5}
    async with serving(models, tmp_path, checkpoint=section(images), policy=policy, keepalive_seconds=0.1) as bench:
        async with bench.stream("slow", "a long story", max_tokens=80) as stream, asyncio.TaskGroup() as tasks:
            await stream.read(5)
            reading = tasks.create_task(stream.read())
            await bench.expect("other")
            assert not reading.done()
            assert (images / "slow" / "frozen" / "manifest.json").exists()
            await reading
            assert stream.is_complete
            assert stream.said == expected_text("slow", "a long story", 80)
        assert not (images / "slow" / "frozen").exists(), "an image with requests is restored only once"
        assert (bench.starts("slow"), restores(bench)) == (1, 1)


async def test_a_lost_frozen_image_breaks_only_the_stream_that_had_begun(tmp_path: Path) -> None:
    models = {"slow": with_flags({**DISCARD_IMAGE, "drain": "freeze"}, *SLOW), "other": OFFLOAD}
    images = tmp_path / "images"
    policy = {"min_active_seconds": 0.5}
    async with serving(models, tmp_path, checkpoint=section(images), policy=policy) as bench:
        async with bench.stream("slow", max_tokens=80) as stream, asyncio.TaskGroup() as tasks:
            await stream.read(2)
            whole = tasks.create_task(bench.expect("slow", "no stream", max_tokens=40))
            await bench.until_model("slow", in_flight=2)
            held = tasks.create_task(bench.expect("other", max_tokens=1))
            await bench.until_model("slow", frozen=2)
            await bench.until_internal_state("slow", "asleep")
            (images / "slow" / "frozen" / "manifest.json").unlink()
            await held
            await stream.read()
            assert json.loads(stream.events[-1])["error"]["code"] == "engine_died"
            assert not stream.is_complete
            await whole
        assert bench.starts("slow") == 2


async def test_a_missing_criu_is_reported_at_the_start(tmp_path: Path) -> None:
    config = simulated_config({"a": DISCARD_IMAGE}, checkpoint={"criu_path": str(tmp_path / "criu")})
    code, log = await ended_early(config, tmp_path)
    assert code == 1
    assert "criu cannot be used" in log and "install criu 4.2" in log


async def test_a_sleeper_that_nobody_asks_for_goes_into_an_image(tmp_path: Path) -> None:
    policy = {"policy_type": "fifo", "min_active_seconds": 0.0, "idle_seconds": 0.2, "sleep_deeper_after_seconds": 0.2}
    models = {"a": with_flags(OFFLOAD, "--sim-hold-memory", "64")}
    async with serving(models, tmp_path, policy=policy, checkpoint=section(tmp_path / "images")) as bench:
        await bench.expect("a")
        await bench.until_model("a", process_state="checkpointed", host_mib=None, pid=None)
        await bench.expect("a", "back from the image")
        assert (bench.starts("a"), restores(bench)) == (1, 1)


async def test_a_sleeper_that_cannot_be_put_into_an_image_is_stopped_next(small_disk: Path, tmp_path: Path) -> None:
    policy = {"policy_type": "fifo", "min_active_seconds": 0.0, "idle_seconds": 0.2, "sleep_deeper_after_seconds": 0.2}
    models = {"a": with_flags(OFFLOAD, "--sim-hold-memory", "64")}
    async with serving(models, tmp_path, policy=policy, checkpoint=section(small_disk)) as bench:
        await bench.expect("a")
        await bench.until_model("a", process_state="not_started", host_mib=None)
        assert bench.server.find_in_log("no image was made")
        assert bench.server.find_in_log(r"eviction=retain\+stop model=a reason=idle")
        await bench.expect("a", "cold")
