"""Models are placed on GPUs by their memory: those that fit stay together, and different GPUs switch independently."""

import asyncio
import random
from pathlib import Path

from tests.support.several_gpus import gpus, model, resident


async def test_models_that_fit_are_resident_together_and_only_memory_forces_a_switch(tmp_path: Path) -> None:
    """Three of four fit. Every order of requests is served with as few switches as the memory forces."""
    models = {name: model(300) for name in "abcd"}
    async with gpus(tmp_path, models, 1000) as bench:
        for name in "abcabcbca":
            await bench.expect(name)
        assert resident(tmp_path, 0) == {"a", "b", "c"}
        status = await bench.status()
        assert status["gpus"] == {"0": {"memory_mib": 1000, "free_mib": 100}}
        held = {name: entry["gpu_mib"] for name, entry in status["models"].items()}
        assert held == {"a": {"0": 300}, "b": {"0": 300}, "c": {"0": 300}, "d": {}}
        await bench.expect("d")
        assert len(resident(tmp_path, 0)) == 3
        assert await bench.switches() == 4, "one for each model, and no more"


async def test_a_start_sees_the_gpu_on_which_it_is_placed(tmp_path: Path) -> None:
    models = {"a": model(700), "b": model(700), "both": model(900, gpus=2), "first": model(100, gpus=[0])}
    async with gpus(tmp_path, models, 1000, 1000) as bench:
        await bench.expect("a")
        await bench.expect("b")
        assert {frozenset(resident(tmp_path, number)) for number in range(2)} == {frozenset("a"), frozenset("b")}
        await bench.expect("first")
        assert "first" in resident(tmp_path, 0)
        await bench.expect("both")
        assert all("both" in resident(tmp_path, number) for number in range(2))


async def test_two_gpus_switch_at_the_same_time(tmp_path: Path) -> None:
    """A start on one GPU that takes for ever delays nobody on the other."""
    models = {
        "slow": model(900, gpus=[0], extra_args=["--startup-delay-ms", "600000"]),
        "a": model(900, gpus=[1]),
        "b": model(900, gpus=[1]),
    }
    async with gpus(tmp_path, models, 1000, 1000) as bench:
        slow = await bench.begin("slow")
        await bench.until_internal_state("slow", "waking")
        for name in "abab":
            await bench.expect(name)
        assert await bench.process_state("slow") == "starting"
        slow.leave()


async def test_random_requests_over_two_gpus_never_over_commit(tmp_path: Path) -> None:
    models = {
        "small-1": model(300),
        "small-2": model(300),
        "middle": model(600, eviction="offload+keep_running"),
        "large": model(950),
        "both": model(800, gpus=2),
    }
    random.seed(5)
    async with gpus(tmp_path, models, 1000, 1000) as bench:

        async def client(number: int) -> None:
            for turn in range(6):
                name = random.choice(list(models))
                await bench.expect(name, f"client {number} turn {turn}")

        async with asyncio.TaskGroup() as clients:
            for number in range(5):
                clients.create_task(client(number))
