"""0.7.7's mock engine, whose interface the simulated engine has: scripts that use it go on working."""

import asyncio
import time

import pytest

from tests.support.simulated_engine import EngineProcess, launched, ready_port

SERVE = ("serve", "m", "--port", "0", "--enable-sleep-mode", "--max-model-len", "64")
OWN = ("--port", "0", "--model", "m")
DELAY_MS = 300


async def ready(model: EngineProcess) -> None:
    model.port = await ready_port(model)


@pytest.mark.parametrize("arguments", [SERVE, OWN], ids=["as vLLM", "its own flags"])
async def test_both_command_lines(arguments: tuple[str, ...]) -> None:
    async with launched(*arguments, "--startup-delay-ms", "1", "--latency-ms", "1") as model:
        await ready(model)
        assert (await model.get("/health"))[0] == 200
        _, listed = await model.get("/v1/models")
        assert [entry["id"] for entry in listed["data"]] == ["m"]


async def test_sleep_wake_and_statistics() -> None:
    async with launched(*SERVE, "--latency-ms", "1") as model:
        await ready(model)
        assert await model.answer("2 + 2", temperature=0.0, seed=42) == "4"
        for query, level in (("", 1), ("?level=2", 2)):
            assert (await model.post(f"/sleep{query}"))[0] == 200
            assert (await model.get("/health"))[0] == 200, "also while asleep"
            stats = await model.stats()
            shown = {key: stats[key] for key in ("model", "sleeping", "sleep_level", "request_count")}
            assert shown == {"model": "m", "sleeping": True, "sleep_level": level, "request_count": 1}
            assert (await model.post("/wake_up"))[0] == 200
            assert (await model.post("/collective_rpc", {"method": "reload_weights"}))[0] == 200
            assert (await model.post("/reset_prefix_cache"))[0] == 200
            assert not (await model.stats())["sleeping"]


@pytest.mark.parametrize(("fault", "path"), [("fail-sleep", "/sleep"), ("fail-wake", "/wake_up")])
async def test_failures_are_switched_on_and_off(fault: str, path: str) -> None:
    async with launched(*SERVE) as model:
        await ready(model)
        assert (await model.post(f"/control/{fault}", {"enabled": True}))[0] == 200
        if path == "/wake_up":
            await model.post("/sleep")
        assert (await model.post(path))[0] == 500
        assert (await model.post(f"/control/{fault}", {"enabled": False}))[0] == 200
        assert (await model.post(path))[0] == 200


async def test_delays() -> None:
    async with launched(*SERVE, "--latency-ms", "0") as model:
        await ready(model)
        assert (await model.post("/control/latency", {"latency_ms": DELAY_MS}))[0] == 200
        assert (await model.post("/control/sleep-delay", {"delay_ms": DELAY_MS}))[0] == 200
        for work in (model.answer("hello", max_tokens=1), model.post("/sleep")):
            began_at = time.monotonic()
            await asyncio.wait_for(work, 10)
            assert time.monotonic() - began_at >= DELAY_MS / 1000
