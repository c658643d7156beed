"""A model that nobody asks for gives its GPU memory back by itself, and comes back for the next request."""

from pathlib import Path

from tests.support.bench import OFFLOAD, serving


async def test_an_idle_model_leaves_and_comes_back(tmp_path: Path) -> None:
    policy = {"policy_type": "fifo", "min_active_seconds": 0.0, "idle_seconds": 0.2}
    models = {"leaves": OFFLOAD, "stays": {**OFFLOAD, "idle_seconds": 3600.0}}
    async with serving(models, tmp_path, policy=policy) as bench:
        await bench.expect("leaves")
        await bench.until_internal_state("leaves", "asleep")
        assert bench.ledger.snapshot().used_mib == 20, "the residue alone"
        await bench.expect("leaves")
        await bench.expect("stays")
        assert await bench.process_state("stays") == "running"
        assert bench.starts("leaves") == 1
