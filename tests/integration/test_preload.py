"""Models that are there from the start, and one that comes back."""

import re
from pathlib import Path

from llmux.simulation.ledger import Ledger
from tests.support.bench import OFFLOAD, Bench, eventually, serving, with_flags
from tests.support.server import ended_early, simulated_config
from tests.support.several_gpus import gpus, model, resident
from tests.support.simulated_engine import gated_engine


async def until_ready(bench: Bench) -> None:
    async def is_ready() -> bool:
        return (await bench.call("GET /ready")).status == 200

    await eventually(is_ready, "ready")


async def test_models_on_different_gpus_start_at_the_same_time_and_stay(tmp_path: Path) -> None:
    engine, gate = gated_engine(tmp_path)
    models = {"a": model(600), "b": model(600), "c": model(300, gpus=[1]), "d": model(900)}
    async with gpus(tmp_path, models, 1000, 1000, preload=["a", "b", "c"], vllm_command=engine) as bench:
        for name in "ab":
            await bench.server.wait_for_log(f"engine started .*model={name}")
        assert (await bench.call("GET /health")).status == 200
        ready = await bench.call("GET /ready")
        assert ready.status == 503
        assert re.fullmatch(r"preloading 1 and 2 of 3: a and b, \d+ s", ready.document["reason"])
        assert bench.starts("c") == 0, "it is to be beside one of them, whose memory is being measured"
        gate.touch()
        await until_ready(bench)
        assert [bench.starts(name) for name in "abcd"] == [1, 1, 1, 0]
        assert resident(tmp_path, 0) == {"a"}
        assert resident(tmp_path, 1) == {"b", "c"}
        for name in "abcabc":
            await bench.expect(name)
        assert [bench.starts(name) for name in "abc"] == [1, 1, 1]


async def test_the_others_are_warmed_up_first(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path, warmup=True, preload=["a"]) as bench:
        await until_ready(bench)
        states = [(await bench.status())["models"][name]["process_state"] for name in "ab"]
        assert states == ["running", "sleeping:Offload+KeepRunning"]
        assert [bench.starts(name) for name in "ab"] == [1, 1]


async def test_a_model_that_cannot_be_preloaded_ends_the_program(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    models = {"a": with_flags(OFFLOAD, "--sim-fault", "start-exit:3")}
    code, log = await ended_early(simulated_config(models, ledger=ledger.path, preload=["a"]), tmp_path)
    assert code == 1
    assert "'a' could not be preloaded" in log
    assert "Traceback" not in log


async def test_the_default_model_is_there_and_comes_back_when_the_other_has_been_idle(tmp_path: Path) -> None:
    policy = {"policy_type": "fifo", "min_active_seconds": 0.0}
    models = {"home": OFFLOAD, "guest": {**OFFLOAD, "idle_seconds": 0.3}}
    async with serving(models, tmp_path, policy=policy, default_model="home") as bench:
        await bench.until_state("active:home")
        await bench.expect("guest")
        await bench.until_internal_state("guest", "asleep")
        await bench.until_state("active:home")
        assert bench.starts("home") == 1
        assert (await bench.status())["models"]["home"]["leaves_in_seconds"] is None
        await bench.expect("home")
