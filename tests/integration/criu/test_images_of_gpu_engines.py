"""Engines that use a GPU in images of the real criu: suspended before by a stand-in for the driver, resumed after."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmux.gpus.cuda import CudaAction
from tests.integration.test_cuda_suspend import RANKS, WEIGHTS
from tests.support import fake_cuda
from tests.support.bench import STOP, Bench, serving
from tests.support.fake_cuda import FakeCuda
from tests.support.real_criu import CRIU, SKIP_REASON

pytestmark = [pytest.mark.criu, pytest.mark.skipif(not CRIU, reason=SKIP_REASON)]


def model(eviction: str, ranks: int = 1) -> dict[str, Any]:
    arguments = RANKS if ranks == 2 else ("--sim-worker",)
    return {"eviction": eviction, "extra_args": [*arguments, "--sim-worker-linger-ms", "0"]}


@asynccontextmanager
async def dumping(
    directory: Path, eviction: str, ranks: int = 1, **limits: Any
) -> AsyncIterator[tuple[Bench, FakeCuda]]:
    """A server with the stand-in, which at the end must have seen no breach of its rules."""
    cuda = FakeCuda(directory / "cuda.json").create(directory / "gpu.json")
    plugins = directory / "plugins"
    plugins.mkdir(exist_ok=True)
    checkpoint = {
        "criu_path": fake_cuda.install_criu(directory, CRIU),
        "images_dir": str(directory / "images"),
        "cuda_plugin_dir": str(plugins),
        "keep_images": False,
    }
    environment = {fake_cuda.VARIABLE: str(cuda.path), **fake_cuda.install_binding(directory)}
    models = {"a": model(eviction, ranks), "b": STOP}
    async with serving(models, directory, environment=environment, checkpoint=checkpoint, **limits) as bench:
        yield bench, cuda
    assert cuda.violations == []


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("weights", WEIGHTS)
async def test_without_a_plugin_it_is_suspended_before_the_dump_and_resumed_after_the_restore(
    tmp_path: Path, weights: str, ranks: int
) -> None:
    async with dumping(tmp_path, f"{weights}+checkpoint", ranks) as (bench, cuda):
        await bench.expect("a")
        await bench.expect("b")
        assert await bench.process_state("a") == "checkpointed"
        manifest = json.loads((tmp_path / "images" / "a" / "images" / "manifest.json").read_text())
        assert len(manifest["suspended"]) == ranks
        assert [gpu["uuid"] for gpu in manifest["gpus"]] == [str(tmp_path / "gpu.json")]
        assert manifest["steps"][-1] == "suspend"
        await bench.expect("a")
        assert cuda.done == [action for action in ("lock", "checkpoint", "restore", "unlock") for _ in range(ranks)]
        assert bench.starts("a") == 1
        stats = await bench.stats("a")
        assert [call for call in stats["worker_calls"] if call.startswith("checkpoint")] == (
            ["checkpoint_prepare", "checkpoint_restore"] if ranks == 2 else []
        )
        assert (stats["asked_while_stopped"], stats["garbage_tokens"]) == (0, 0)


async def test_beside_the_plugin_nothing_is_suspended(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "cuda_plugin.so").touch()
    async with dumping(tmp_path, "retain+checkpoint") as (bench, cuda):
        for name in ("a", "b", "a"):
            await bench.expect(name)
        assert cuda.done == []
        assert bench.starts("a") == 1


# A dump that hangs is in tests/unit/checkpoints: its time limit is a minute and more.
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("how", "action"),
    [("fail", "dump"), *((how, str(action)) for how in ("fail", "hang") for action in CudaAction)],
)
async def test_a_client_never_sees_what_goes_wrong(tmp_path: Path, how: str, action: str, ranks: int) -> None:
    limits = {"cuda_lock_timeout_seconds": 1.0, "cuda_suspend_timeout_seconds": 1.0, "stop_timeout_seconds": 1.0}
    async with dumping(tmp_path, "retain+checkpoint", ranks, **limits) as (bench, cuda):
        await bench.expect("a")
        cuda.break_action(action, how)
        for name in ("b", "a"):
            await bench.expect(name)
        if action == "dump":
            assert bench.server.find_in_log("no image was made, the engine stays suspended")
            assert bench.starts("a") == 1
        cuda.break_action(action, how, 0)
        for name in ("b", "a"):
            await bench.expect(name)


async def test_an_image_of_another_gpu_is_refused_with_its_reason(tmp_path: Path) -> None:
    async with dumping(tmp_path, "retain+checkpoint") as (bench, _):
        await bench.expect("a")
        await bench.expect("b")
        file = tmp_path / "images" / "a" / "images" / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["gpus"][0]["name"] = "NVIDIA Elsewhere"
        file.write_text(json.dumps(manifest))
        await bench.expect("a")
        await bench.server.wait_for_log("made on a GPU NVIDIA Elsewhere")
        assert bench.starts("a") == 2
