"""Bounded wait: however busy one model is kept, the others get their turn."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.support.bench import OFFLOAD, Bench, serving, with_flags

MAX_WAIT_SECONDS = 1.0
STREAM_TOKENS = 20
TOKEN_MS = 10
SLACK_SECONDS = 6.0
"""For the switch, the end of the streams that are under way, and a busy machine."""

MODELS = {"busy": with_flags(OFFLOAD, "--token-ms", str(TOKEN_MS)), "cold": OFFLOAD}


class Load:
    """Clients that stream from one model, back to back and overlapping, so that it is never idle."""

    def __init__(self, bench: Bench, model: str, clients: int = 4) -> None:
        self.streams = 0
        self._bench = bench
        self._model = model
        self._clients = clients
        self._stopping = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._clients):
                tasks.create_task(self._client())

    def stop(self) -> None:
        self._stopping = True

    async def _client(self) -> None:
        while not self._stopping:
            async with self._bench.stream(self._model, max_tokens=STREAM_TOKENS) as stream:
                await stream.read()
                assert stream.is_complete
            self.streams += 1


@pytest.mark.parametrize(
    "policy",
    ["fifo", pytest.param("cost_aware", marks=pytest.mark.slow), pytest.param("time_slice", marks=pytest.mark.slow)],
)
async def test_a_request_for_a_cold_model_is_answered_within_the_bound(tmp_path: Path, policy: str) -> None:
    settings = {"policy_type": policy, "max_wait_seconds": MAX_WAIT_SECONDS}
    async with serving(MODELS, tmp_path, policy=settings) as bench:
        await bench.expect("busy")
        load = Load(bench, "busy")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            await bench.until_model("busy", in_flight=4)
            for number in range(3):
                began_at = time.monotonic()
                await bench.expect("cold", f"number {number}")
                assert time.monotonic() - began_at < MAX_WAIT_SECONDS + SLACK_SECONDS
                await bench.until_model("busy", in_flight=4)
            load.stop()
        assert load.streams >= 12
        assert (await bench.stats("busy"))["slept_under_requests"] == 0


async def test_time_slice_waits_for_the_bound_and_not_for_ever(tmp_path: Path) -> None:
    """Without the timer nothing would bring the cold model: no other request for it arrives."""
    settings = {"policy_type": "time_slice", "max_wait_seconds": MAX_WAIT_SECONDS}
    async with serving(MODELS, tmp_path, policy=settings) as bench:
        await bench.expect("busy")
        load = Load(bench, "busy")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            await bench.until_model("busy", in_flight=4)
            answer = await bench.expect("cold")
            load.stop()
        assert int(answer.headers["x-llmux-queue-ms"]) >= MAX_WAIT_SECONDS * 1000


async def test_two_busy_models_and_a_third_one_all_get_turns(tmp_path: Path) -> None:
    busy = with_flags(OFFLOAD, "--token-ms", str(TOKEN_MS))
    models = {"one": busy, "two": busy, "cold": OFFLOAD}
    async with serving(models, tmp_path, gpu_mib=1000, policy={"max_wait_seconds": 0.5}) as bench:
        loads = [Load(bench, "one", clients=2), Load(bench, "two", clients=2)]
        async with asyncio.TaskGroup() as tasks:
            for load in loads:
                tasks.create_task(load.run())
            await bench.until_model("one", queue_depth=0)
            for number in range(3):
                began_at = time.monotonic()
                await bench.expect("cold", f"number {number}")
                assert time.monotonic() - began_at < 2 * SLACK_SECONDS
            for load in loads:
                load.stop()
        assert all(load.streams >= 2 for load in loads)
