"""What a model needs of the GPUs is measured at its first load, remembered, and corrected where it was wrong."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.ledger import Ledger
from tests.support.bench import Bench
from tests.support.server import NO_CERTIFICATES, SIMULATED_ENGINE, http_client, llmux_server

GPU_MIB = 1000
OFFLOAD = "offload+keep_running"


def model(mib: int, *flags: str, **more: Any) -> dict[str, Any]:
    """A model whose arguments do not say that its engine takes so much."""
    return {"eviction": "retain+stop", "extra_args": ["--sim-gpu-memory", str(mib), *flags], **more}


@asynccontextmanager
async def serving(
    directory: Path,
    models: Mapping[str, Mapping[str, Any]],
    *,
    environment: Mapping[str, str] | None = None,
    is_declared: bool = True,
    **more: Any,
) -> AsyncIterator[Bench]:
    """A server over one virtual GPU, declared or not. Several of them, one after the other, share their cache."""
    ledger = Ledger(directory / "gpu.json").create(GPU_MIB)
    sized = {
        name: {
            "engine": "sglang",
            "command": SIMULATED_ENGINE,
            "model_path": f"models/{name}",
            "env": {**NO_CERTIFICATES, "LLMUX_SIM_KIND": "sglang"},
            **settings,
            "extra_args": [*("--sim-gpu-ledger", str(ledger.path), "--latency-ms", "1"), *settings["extra_args"]],
        }
        for name, settings in models.items()
    }
    config = {
        "port": 0,
        "metrics_port": 0,
        "policy": {"policy_type": "fifo", "min_active_seconds": 0.0},
        **({"gpus": [{"memory": GPU_MIB << 20}]} if is_declared else {}),
        "cache_dir": str(directory / "cache"),
        "models": sized,
        **more,
    }
    async with llmux_server(config, directory, environment=environment) as server, http_client() as session:
        yield Bench(server, session, ledger, directory)
    book = ledger.snapshot()
    assert not book.refused, "more was asked for than was free"
    assert not book.allocations


async def needs(bench: Bench) -> dict[str, tuple[int, str]]:
    models = (await bench.status())["models"]
    return {name: (entry["gpu_need"]["mib"], entry["gpu_need"]["source"]) for name, entry in models.items()}


async def resident(bench: Bench) -> set[str]:
    return set((await bench.status())["resident"])


async def switches(bench: Bench, *names: str) -> int:
    """How many switches it takes to serve these models in this order."""
    before = await bench.switches()
    for name in names:
        await bench.expect(name)
    return await bench.switches() - before


async def test_undeclared_models_become_resident_together_after_one_load_each_and_stay_so_after_a_restart(
    tmp_path: Path,
) -> None:
    models = {name: model(300) for name in "abc"}
    measured = (315, "measured")
    async with serving(tmp_path, models) as bench:
        assert await needs(bench) == dict.fromkeys("abc", (GPU_MIB, "unknown"))
        await switches(bench, "a", "b")
        assert await resident(bench) == {"b"}, "what b needs was not known"
        assert await needs(bench) == {"a": measured, "b": measured, "c": (GPU_MIB, "unknown")}
        await switches(bench, "c", "a", "b")
        assert await resident(bench) == {"a", "b", "c"}
        assert await switches(bench, *"abcabc") == 0
    async with serving(tmp_path, models) as bench:
        assert await needs(bench) == dict.fromkeys("abc", measured)
        assert await switches(bench, *"abcabc") == 3, "one load each"
        assert await resident(bench) == {"a", "b", "c"}
    changed = {**models, "b": model(500, "--token-ms", "0")}
    async with serving(tmp_path, changed) as bench:
        assert await needs(bench) == {"a": measured, "b": (GPU_MIB, "unknown"), "c": measured}, "other arguments"
        await switches(bench, "b")
        assert (await needs(bench))["b"] == (525, "measured")


async def test_a_declaration_that_is_too_small_is_said_and_corrected(tmp_path: Path) -> None:
    models = {"a": model(400, gpu_memory="200MiB"), "b": model(700, gpu_memory="700MiB")}
    async with serving(tmp_path, models) as bench:
        await bench.expect("a")
        await bench.server.wait_for_log("gpu_memory is too small.*gpu_memory_mib=200.*model=a.*400MiB.*seen_mib=400")
        entry = (await bench.status())["models"]["a"]
        assert entry["gpu_need"] == {"mib": 404, "source": "measured", "said_mib": 200}
        assert entry["gpu_mib"] == {"0": 404}
        assert (await bench.call("GET /v1/models/a")).document["gpu_need"] == entry["gpu_need"]
        await bench.expect("b")
        assert await resident(bench) == {"b"}, "200 would have fitted beside 700"
        assert (await needs(bench))["b"] == (700, "declared")
    async with serving(tmp_path, models) as bench:
        await bench.server.wait_for_log("gpu_memory is too small.*model=a")
        assert (await needs(bench))["a"] == (404, "measured")


async def test_what_a_sleeper_keeps_is_counted_and_remembered(tmp_path: Path) -> None:
    """It stays asleep for a model that fits beside what it keeps, and is stopped for one that does not."""
    models = {
        "a": model(300, "--sim-residue", "100", gpu_memory="300MiB", eviction=OFFLOAD),
        "b": model(880, gpu_memory="880MiB"),
        "c": model(950, gpu_memory="950MiB"),
    }
    async with serving(tmp_path, models) as bench:
        await switches(bench, "a", "b")
        assert await bench.process_state("a") == "sleeping:Offload+KeepRunning"
        assert (await bench.status())["models"]["a"]["gpu_mib"] == {"0": 100}
        await switches(bench, "a", "c")
        assert await bench.process_state("a") == "not_started"
    async with serving(tmp_path, models) as bench:
        await switches(bench, "a", "c")
        story = [one["after"]["state"] for one in (await bench.call("GET /control/models/a/story")).document["story"]]
        assert story[-1] == "cold"
        assert "asleep" not in story, "it was known that its sleep would leave too little"


@pytest.mark.parametrize(
    ("more", "together"),
    [({}, True), ({"share_gpus": False}, False), ({"startup_timeout_secs": 60}, False)],
    ids=["default", "not-shared", "file-of-0.7.7"],
)
async def test_models_share_gpus_that_can_be_read_without_a_word_in_the_configuration(
    tmp_path: Path, more: dict[str, Any], together: bool
) -> None:
    environment = {"LLMUX_SIM_LEDGER": str(tmp_path / "gpu.json")}
    models = {name: model(300) for name in "ab"}
    async with serving(tmp_path, models, environment=environment, is_declared=False, **more) as bench:
        await switches(bench, "a", "b", "a")
        assert await resident(bench) == ({"a", "b"} if together else {"a"})
        assert await switches(bench, "b", "a") == (0 if together else 2)
