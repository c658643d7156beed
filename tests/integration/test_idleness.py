"""A model that nobody asks for gives its GPU memory back by itself, and comes back for the next request."""

from pathlib import Path

import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.support.bench import OFFLOAD, serving
from tests.support.command import run_llmux


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


@pytest.mark.parametrize(
    "said",
    [{"extra_headers": {"x-llmux-keep-alive": "0"}}, {"extra_body": {"keep_alive": "0s"}}],
    ids=["header", "body"],
)
async def test_a_client_says_that_it_is_done_with_a_model(tmp_path: Path, said: dict[str, dict[str, str]]) -> None:
    async with (
        serving({"a": OFFLOAD}, tmp_path) as bench,
        AsyncOpenAI(base_url=f"{bench.server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        for number in range(2):
            await client.completions.create(model="a", prompt=f"number {number}", max_tokens=4, **said)  # type: ignore[call-overload]
            await bench.until_internal_state("a", "asleep")
        assert (await bench.stats("a"))["sleeps"] == 2


async def test_status_tells_when_a_model_leaves(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        assert (await bench.status())["models"]["a"]["leaves_in_seconds"] is None
        await bench.expect("a", keep_alive="10m")
        await bench.until_model("a", in_flight=0)
        left = (await bench.status())["models"]["a"]["leaves_in_seconds"]
        assert 0 < left <= 600
        shown = await run_llmux("status", "--url", bench.server.url, directory=None)
        assert "running (leaves in " in shown.output
        await bench.expect("a", keep_alive=-1)
        await bench.until_model("a", in_flight=0, leaves_in_seconds=None)


async def test_a_wrong_wish_is_told_with_the_formats(tmp_path: Path) -> None:
    async with (
        serving({"a": OFFLOAD}, tmp_path) as bench,
        AsyncOpenAI(base_url=f"{bench.server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(BadRequestError, match="keep_alive must be a number of seconds or a duration as 10m"):
            await client.completions.create(model="a", prompt="x", extra_body={"keep_alive": "soon"})
        assert await bench.process_state("a") == "not_started"
