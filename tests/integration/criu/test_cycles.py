"""Engines dumped and restored with the real criu: repeatedly, several at once, with all of their state."""

import http.client
import os
import signal
import sys
from pathlib import Path

import pytest

from llmux.checkpoints.manifest import read_manifest
from llmux.errors import ImageUnusable
from llmux.hosts.local import choose_ports, create_temporary_directory
from llmux.instances.process import EngineProcess, LaunchCommand
from tests.support.real_criu import CRIU, FAMILY, SKIP_REASON, Engine, new_checkpointer, only_image_left, started

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]


async def test_an_engine_is_dumped_and_restored_three_times(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        before = await engine.get()
        for cycle in range(3):
            manifest = await engine.dump()
            assert engine.exits == []
            assert read_manifest(engine.path) == manifest
            await engine.restore()
            after = await engine.get()
            assert after == {**before, "count": before["count"] + cycle + 1}
            await engine.wait_for_lines(cycle + 2, "GET")
        await engine.process.stop(5.0, 5.0)
        assert engine.exits == [-15]
        await engine.checkpointer.delete(engine.path)
    assert not any(tmp_path.iterdir())


async def test_processes_keep_their_shared_memory_and_files(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), FAMILY) as engine:
        before = await engine.get()
        assert before["count"] == before["notes"] == 1
        for cycle in range(2):
            manifest = await engine.dump()
            assert len(manifest.pids) >= 3
            assert any(name.startswith("link_remap.") for name in manifest.shared_memory)
            assert any(name.startswith("psm_") for name in manifest.shared_memory)
            await engine.restore()
            assert await engine.get() == {**before, "count": cycle + 2, "notes": cycle + 2}
        await engine.dump()
    await engine.checkpointer.delete(engine.path)


async def test_two_engines_are_in_images_at_once(tmp_path: Path) -> None:
    ours = new_checkpointer(tmp_path)
    async with started(ours, FAMILY, model="org/one") as one, started(ours, FAMILY, model="org/two") as two:
        befores = [await engine.get() for engine in (one, two)]
        for cycle in range(2):
            manifests = [await engine.dump() for engine in (one, two)]
            remapped = [{name for name in each.shared_memory if name.startswith("link_")} for each in manifests]
            assert all(remapped)
            for engine in (one, two):
                await engine.restore()
            afters = [await engine.get() for engine in (one, two)]
            assert afters == [{**before, "count": cycle + 2, "notes": cycle + 2} for before in befores]
    for engine in (one, two):
        await ours.delete(engine.path)
    assert not any(tmp_path.iterdir())


async def test_one_image_is_restored_three_times(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path), FAMILY) as engine:
        before = await engine.get()
        await engine.dump()
        for _ in range(3):
            await engine.restore()
            assert await engine.get() == {**before, "count": 2, "notes": 2}
            assert await engine.get() == {**before, "count": 3, "notes": 3}
            engine.process.kill()
            await engine.process.wait_gone()
        assert engine.exits == [-signal.SIGKILL] * 3
        await engine.checkpointer.delete(engine.path)


async def test_the_exit_code_of_a_restored_engine_is_known(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        await engine.dump()
        manifest = await engine.restore()
        with pytest.raises(http.client.RemoteDisconnected):
            await engine.get("/exit")
        assert await engine.process.wait_exited() == 7
        await engine.process.wait_gone()
        assert engine.exits == [7]
        assert only_image_left(manifest)


async def test_the_simulated_engine_is_dumped_and_restored(tmp_path: Path) -> None:
    (port,) = choose_ports(1)
    arguments = (
        "serve",
        "model",
        "--port",
        str(port),
        "--sim-hold-memory",
        "64",
        "--sim-worker",
        "--sim-worker-linger-ms",
        "50",
    )
    argv = (str(Path(sys.executable).with_name("llmux-sim-engine")), *arguments)
    lines: list[str] = []
    exits: list[int] = []
    directory = create_temporary_directory("model")
    launch = LaunchCommand(argv, dict(os.environ), directory, checkpointable=True)
    process = await EngineProcess.spawn(launch, on_line=lambda _, line: lines.append(line), on_exit=exits.append)
    engine = Engine("model", port, argv, new_checkpointer(tmp_path), process, lines, exits)
    await engine.wait_for_lines(1, "READY")
    for _ in range(3):
        await engine.dump()
        await engine.restore()
        assert (await engine.get("/v1/models"))["data"][0]["id"] == "model"
    await engine.process.stop(10.0, 5.0)
    assert engine.exits == [0]


async def test_an_image_is_private(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path / "all"), model="org/model") as engine:
        await engine.dump()
        assert engine.path == tmp_path / "all" / "org" / "model" / "images"
        modes = {directory.stat().st_mode & 0o777 for directory in (engine.path, *list(engine.path.parents)[:3])}
        assert modes == {0o700}
        (tmp_path / "all" / "org").chmod(0o777)
        with pytest.raises(ImageUnusable, match="can be written to by other users"):
            await engine.restore()


async def test_an_image_with_frozen_requests_is_restored_only_once(tmp_path: Path) -> None:
    async with started(new_checkpointer(tmp_path)) as engine:
        await engine.checkpointer.dump(engine.process, engine.facts(has_frozen=True))
        path = engine.checkpointer.image_path(engine.model, frozen=True)
        assert path == tmp_path / "stub" / "frozen"
        manifest = await engine.restore(path)
        assert manifest.has_frozen
        await engine.process.stop(5.0, 5.0)
        with pytest.raises(ImageUnusable, match="it has no manifest"):
            await engine.restore(path)
        await engine.checkpointer.delete(path)
    assert not any(tmp_path.iterdir())
