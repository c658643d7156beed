"""Engines into images and back with the real criu: whole, as often as one likes, several beside each other."""

from pathlib import Path

import pytest

from llmux.checkpoints.manifest import read_manifest
from tests.support.real_criu import CRIU, FAMILY, SKIP_REASON, imager, none_exists, started

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]


async def test_three_cycles(tmp_path: Path) -> None:
    async with started(imager(tmp_path)) as engine:
        before = await engine.get()
        for cycle in range(3):
            manifest = await engine.dump()
            assert engine.exits == []
            assert none_exists(manifest)
            assert read_manifest(engine.path) == manifest
            await engine.restore()
            after = await engine.get()
            assert after == {**before, "count": before["count"] + cycle + 1}
            await engine.heard(cycle + 2, "GET")
        await engine.process.stop(5.0, 5.0)
        assert engine.exits == [-15]
        await engine.imager.drop(engine.path)
    assert list(tmp_path.iterdir()) == []


async def test_family_with_shared_memory_and_files_of_its_own(tmp_path: Path) -> None:
    async with started(imager(tmp_path), FAMILY) as engine:
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
    await engine.imager.drop(engine.path)
