"""Warm-up: every model is started, sent one prompt, and put to sleep before the first request is accepted."""

from pathlib import Path

import pytest

from llmux.simulation.ledger import Ledger
from tests.support.bench import DISCARD, OFFLOAD, STOP, serving, with_flags
from tests.support.server import ended_early, simulated_config


async def test_all_models_end_asleep_and_none_is_active(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": DISCARD, "c": STOP}, tmp_path, warmup=True, canary="off") as bench:
        status = await bench.status()
        assert (status["state"], status["active_model"]) == ("idle", None)
        states = {name: model["process_state"] for name, model in status["models"].items()}
        assert states == {
            "a": "sleeping:Offload+KeepRunning",
            "b": "sleeping:Discard+KeepRunning",
            "c": "not_started",
        }
        for name in "ab":
            stats = await bench.stats(name)
            assert (stats["sleeping"], stats["request_count"], stats["sleeps"]) == (True, 1, 1)
        lines = [line for line in bench.server.log if "warmed up" in line or "listening" in line]
        assert len(lines) == 4
        assert "listening" in lines[-1]
        for name in "abc":
            await bench.expect(name)
        assert [bench.starts(name) for name in "abc"] == [1, 1, 2]


@pytest.mark.parametrize(
    "fault", ["start-exit:3", "die-on-request", pytest.param("start-hang", marks=pytest.mark.slow)]
)
async def test_a_failed_warm_up_ends_the_program(tmp_path: Path, fault: str) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    models = {"a": OFFLOAD, "b": with_flags(OFFLOAD, "--sim-fault", fault)}
    config = simulated_config(models, ledger=ledger.path, warmup=True, start_timeout_seconds=2.0)
    code, log = await ended_early(config, tmp_path)
    assert code == 1
    assert "listening" not in log
    assert "warm-up of 'b' failed" in log
    assert "Traceback" not in log
    assert ledger.snapshot().allocations == ()


async def test_a_model_that_cannot_sleep_is_stopped_instead(tmp_path: Path) -> None:
    async with serving(
        {"a": with_flags(OFFLOAD, "--sim-fault", "sleep-500")}, tmp_path, warmup=True, canary="off"
    ) as bench:
        assert await bench.process_state("a") == "not_started"
        await bench.expect("a")
