"""Engines whose GPU memory a stand-in of NVIDIA's driver suspends: every way to leave, and what fails on the way."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.engine.text import expected_text
from tests.support import fake_cuda
from tests.support.bench import SLOW, STOP, Bench, serving
from tests.support.fake_cuda import FakeCuda
from tests.support.server import SIMULATED_ENGINE, ended_early, simulated_config

RANKS = ("--tensor-parallel-size", "2", "--enforce-eager", "--disable-custom-all-reduce", "--sim-ranks", "2")
WEIGHTS = ("retain", "offload", "discard")
LIMITS = {"cuda_lock_timeout_seconds": 1.0, "cuda_suspend_timeout_seconds": 1.0, "stop_timeout_seconds": 1.0}
"""Short, for what hangs."""


@asynccontextmanager
async def suspending(
    directory: Path, models: dict[str, Any], *, by: str = "driver", **top_level: Any
) -> AsyncIterator[tuple[Bench, FakeCuda]]:
    """A server with the stand-in, which at the end must have seen no breach of its rules.

    ``by``: through which door the driver is reached.
    """
    cuda = FakeCuda(directory / "cuda.json").create(directory / "gpu.json")
    environment = {fake_cuda.VARIABLE: str(cuda.path)}
    checkpoint = dict(top_level.pop("checkpoint", {}))
    if by == "driver":
        environment |= fake_cuda.install_binding(directory)
    else:
        checkpoint["cuda_checkpoint_path"] = fake_cuda.install_program(directory)
    settings = {"checkpoint": checkpoint, **LIMITS, **top_level}
    async with serving(models, directory, environment=environment, **settings) as bench:
        yield bench, cuda
    assert cuda.violations == []


def model(eviction: str, ranks: int = 1, *flags: str) -> dict[str, Any]:
    """A model's settings: its GPU memory is a worker's, or of several."""
    arguments = RANKS if ranks == 2 else ("--sim-worker",)
    return {"eviction": eviction, "extra_args": [*arguments, "--sim-worker-linger-ms", "0", *flags]}


@pytest.mark.parametrize("by", ["driver", "program"])
@pytest.mark.parametrize("weights", WEIGHTS)
async def test_a_model_comes_and_goes(tmp_path: Path, by: str, weights: str) -> None:
    async with suspending(tmp_path, {"a": model(f"{weights}+cuda_suspend"), "b": STOP}, by=by) as (bench, cuda):
        await bench.expect("a")
        root = bench.engine("a")
        await bench.expect("b")
        assert await bench.process_state("a") == f"sleeping:{weights.capitalize()}+CudaSuspend"
        assert cuda.done == ["lock", "checkpoint"]
        assert root.is_running()
        assert bench.ledger.snapshot().used_mib == 900, "the suspended one holds nothing at all"
        await bench.expect("a")
        assert cuda.done == ["lock", "checkpoint", "restore", "unlock"]
        assert bench.engine("a").pid == root.pid and bench.starts("a") == 1
        stats = await bench.stats("a")
        assert (stats["sleeps"], stats["wakes"]) == ((0, 0) if weights == "retain" else (1, 1))
        assert stats["asked_while_stopped"] == 0
        assert stats["garbage_tokens"] == 0


@pytest.mark.parametrize("weights", WEIGHTS)
async def test_ranks_are_prepared_after_the_sleep_and_connected_before_the_wake(tmp_path: Path, weights: str) -> None:
    async with suspending(tmp_path, {"a": model(f"{weights}+cuda_suspend", 2), "b": STOP}) as (bench, cuda):
        for _ in range(2):
            await bench.expect("a")
            await bench.expect("b")
        await bench.expect("a")
        assert cuda.done == ["lock", "lock", "checkpoint", "checkpoint", "restore", "restore", "unlock", "unlock"] * 2
        assert bench.starts("a") == 1
        stats = await bench.stats("a")
        reloads = ["reload_weights"] if weights == "discard" else []
        assert stats["worker_calls"] == ["checkpoint_prepare", "checkpoint_restore", *reloads] * 2
        assert stats["asked_while_stopped"] == 0


async def test_the_calls_of_the_engine_that_077_patches_can_be_named(tmp_path: Path) -> None:
    calls = {"checkpoint_calls": {"prepare": "suspend_nccl", "restore": "resume_nccl"}}
    async with suspending(tmp_path, {"a": model("retain+cuda_suspend", 2) | calls, "b": STOP}) as (bench, _):
        for name in ("a", "b", "a"):
            await bench.expect(name)
        assert (await bench.stats("a"))["worker_calls"] == ["suspend_nccl", "resume_nccl"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("how", fake_cuda.FAULTS)
@pytest.mark.parametrize("action", ["lock", "checkpoint", "restore", "unlock"])
@pytest.mark.parametrize("weights", ["retain", "discard"])
async def test_a_client_never_sees_an_action_that_goes_wrong(
    tmp_path: Path, weights: str, action: str, how: str, ranks: int
) -> None:
    async with suspending(tmp_path, {"a": model(f"{weights}+cuda_suspend", ranks), "b": STOP}) as (bench, cuda):
        await bench.expect("a")
        # The last rank's: the others are ahead of it.
        cuda.break_action(action, how)
        await bench.expect("b")
        held = {one.model: one.mib for one in bench.ledger.snapshot().allocations}
        assert sum(mib for name, mib in held.items() if name == "a") <= 20, "the GPU is free"
        await bench.expect("a")
        cuda.break_action(action, how, 0)
        await bench.expect("b")
        await bench.expect("a")
        assert bench.ledger.snapshot().refused == ()


async def test_an_engine_that_could_not_be_locked_sleeps_instead(tmp_path: Path) -> None:
    async with suspending(tmp_path, {"a": model("retain+cuda_suspend"), "b": STOP}) as (bench, cuda):
        await bench.expect("a")
        cuda.break_action("lock", "fail", 1)
        await bench.expect("b")
        assert await bench.process_state("a") == "sleeping:Offload+KeepRunning"
        assert bench.server.find_in_log("the GPU was not suspended, the engine sleeps instead .*injected|ILLEGAL")
        await bench.expect("a")
        assert bench.starts("a") == 1


async def test_an_engine_without_sleep_is_stopped_where_it_cannot_be_suspended(tmp_path: Path) -> None:
    command = [
        SIMULATED_ENGINE,
        "serve",
        "models/c",
        "--port",
        "{port}",
        "--sim-gpu-ledger",
        str(tmp_path / "gpu.json"),
    ]
    plain = {"engine": "command", "start_command": [*command, "--sim-gpu-memory", "900", "--served-model-name", "c"]}
    models = {"c": {**plain, "eviction": "retain+cuda_suspend"}, "b": STOP}
    async with suspending(tmp_path, models) as (bench, cuda):
        await bench.expect("c")
        await bench.expect("b")
        assert await bench.process_state("c") == "sleeping:Retain+CudaSuspend"
        await bench.expect("c")
        assert bench.starts("c") == 1, "sleep for an engine that has none"
        cuda.break_action("checkpoint", "fail", 1)
        await bench.expect("b")
        assert await bench.process_state("c") == "not_started"
        await bench.expect("c")
        assert bench.starts("c") == 2


async def test_a_suspended_engine_is_stopped_without_a_word_to_it(tmp_path: Path) -> None:
    async with suspending(tmp_path, {"a": model("retain+cuda_suspend"), "b": STOP}) as (bench, cuda):
        await bench.expect("a")
        root = bench.engine("a")
        await bench.expect("b")
        for eviction in ("offload+cuda_suspend", "retain+stop"):
            weights, process = eviction.split("+")
            body = {"model": "a", "eviction": {"weights": weights, "process": process}}
            assert (await bench.call("POST /control/sleep", body)).status == 200
        assert await bench.process_state("a") == "not_started"
        assert not root.is_running()
        assert cuda.done == ["lock", "checkpoint"]


async def test_too_little_host_memory_is_found_before_anything_is_moved(tmp_path: Path) -> None:
    top = {"host_memory_reserve_mib": 1 << 30}
    async with suspending(tmp_path, {"a": model("retain+cuda_suspend"), "b": STOP}, **top) as (bench, cuda):
        for name in ("a", "b", "a"):
            await bench.expect(name)
        assert cuda.done == []
        assert bench.server.find_in_log("host_memory_reserve_mib is")
        assert bench.starts("a") == 1, "its weights were discarded"


async def test_a_server_that_cannot_suspend_says_so_at_its_start(tmp_path: Path) -> None:
    config = simulated_config({"a": {"eviction": "retain+cuda_suspend"}}, ledger=tmp_path / "gpu.json")
    code, log = await ended_early(config, tmp_path)
    assert code == 1
    assert "CUDA processes cannot be suspended here" in log and "pip install" in log


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("fault", ["sleep-500:1", "wake-500:1", "wake-hang:1", "reload-500:1", "prepare-500:1"])
async def test_a_client_never_sees_a_step_of_the_engines_own_that_goes_wrong(
    tmp_path: Path, fault: str, ranks: int
) -> None:
    models = {"a": model("discard+cuda_suspend", ranks, "--sim-fault", fault), "b": STOP}
    async with suspending(tmp_path, models, wake_timeout_seconds=1.0) as (bench, cuda):
        for name in ("a", "b", "a"):
            await bench.expect(name)
        # A new engine has the fault again, and one rank needs no preparation.
        assert bench.starts("a") == (1 if (fault, ranks) == ("prepare-500:1", 1) else 2)
        assert len(cuda.done) in (0, 4 * ranks)


async def test_an_engine_that_dies_suspended_is_started_anew(tmp_path: Path) -> None:
    async with suspending(tmp_path, {"a": model("retain+cuda_suspend"), "b": STOP}) as (bench, _):
        await bench.expect("a")
        root = bench.engine("a")
        await bench.expect("b")
        root.kill()
        await bench.expect("a")
        assert bench.starts("a") == 2


@pytest.mark.parametrize("weights", WEIGHTS)
async def test_a_frozen_stream_outlives_a_suspend(tmp_path: Path, weights: str) -> None:
    frozen = model(f"{weights}+cuda_suspend", 1, *SLOW) | {"drain": "freeze"}
    async with suspending(tmp_path, {"a": frozen, "b": STOP}) as (bench, cuda):
        await bench.expect("a")
        async with bench.stream("a", "a long one", max_tokens=40) as stream:
            await stream.read(5)
            await bench.expect("b")
            assert await bench.process_state("a") == f"sleeping:{weights.capitalize()}+CudaSuspend"
            await stream.read()
        assert stream.is_complete
        assert stream.said == expected_text("a", "a long one", 40)
        assert cuda.done == ["lock", "checkpoint", "restore", "unlock"]
        assert bench.starts("a") == 1
