"""``llmux replay`` against a real ``llmux serve``: it reports what happened, which is what the simulator predicts."""

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.simulation.traces import read_trace
from llmux.simulation.virtual.scenario import build_scenario, simulate, summarise
from tests.support.bench import DEADLINE_SECONDS, eventually
from tests.support.command import run_llmux
from tests.support.fork_server import start_llmux
from tests.support.server import LlmuxProcess, llmux_server, simulated_config

EVICT_SECONDS, WAKE_SECONDS = 0.2, 0.6
FLAGS = (
    *("--latency-ms", "0", "--token-ms", "25", "--sim-prefill-tokens-per-second", "8000"),
    *("--sim-sleep-ms", str(EVICT_SECONDS * 1000), "--sim-wake-ms", str(WAKE_SECONDS * 1000)),
)
REQUESTS = [(0.0, "a", 400, 40), (0.5, "b", 800, 20), (0.6, "a", 400, 20), (2.5, "b", 400, 10), (4.0, "a", 100, 10)]
WAIT_SLACK_SECONDS = 0.4
"""What a busy machine may add to the mean wait, beside the 10 % that the five-minute bench allows."""


def configuration() -> dict[str, Any]:
    settings = {"eviction": "offload+keep_running", "extra_args": list(FLAGS)}
    return simulated_config(dict.fromkeys("ab", settings), policy={"min_active_seconds": 1.0}, warmup=True)


def trace(directory: Path, requests: list[tuple[float, str, int, int]]) -> Path:
    file = directory / "trace.csv"
    lines = [f"{at},{model},{prompt},{output}" for at, model, prompt, output in requests]
    file.write_text("\n".join(["timestamp,model,prompt_tokens,output_tokens", *lines]))
    return file


async def test_its_figures_are_those_of_the_server(tmp_path: Path) -> None:
    file = trace(tmp_path, REQUESTS)
    async with llmux_server(configuration(), tmp_path) as server:
        before = await waits(server)
        ended = await run_llmux("replay", str(file), "--json", "--url", server.url, directory=tmp_path)
        after = await waits(server)
    assert ended.code == 0, ended
    real = ended.document["policies"]["replay"]
    assert ended.document["requests"] == after.count - before.count == len(REQUESTS)
    assert real["unserved"] == 0
    assert real["switches"] == after.switches - before.switches >= 2, "each model had to be brought"
    assert real["wait"]["mean"] == pytest.approx((after.seconds - before.seconds) / len(REQUESTS), abs=0.002)
    assert real["latency"]["mean"] > real["ttft"]["mean"] > real["wait"]["mean"]
    assert sum(real["share"].values()) == pytest.approx(1.0, abs=1e-5), "six decimals are shown"


@pytest.mark.slow  # Not for its duration: a busy machine adds to what it measures.
async def test_what_happens_is_what_the_simulator_predicts(tmp_path: Path) -> None:
    file = trace(tmp_path, REQUESTS)
    async with llmux_server(configuration(), tmp_path) as server:
        ended = await run_llmux("replay", str(file), "--json", "--url", server.url, directory=tmp_path)
    assert ended.code == 0, ended
    document = ended.document
    real = document["policies"]["replay"]
    requests = list(read_trace(str(file)).requests)
    scenario = build_scenario(
        loads(json.dumps(configuration())).settings, [f"evict={EVICT_SECONDS},wake={WAKE_SECONDS}"]
    )
    virtual = summarise("fifo", requests, simulate(scenario, requests, PolicyType.FIFO)).total
    assert document["requests"] == len(REQUESTS)
    assert real["unserved"] == virtual.unserved == 0
    assert real["switches"] == virtual.switches
    assert virtual.wait.mean is not None and virtual.share is not None
    assert real["wait"]["mean"] == pytest.approx(virtual.wait.mean, rel=0.1, abs=WAIT_SLACK_SECONDS)
    assert real["share"]["switching"] == pytest.approx(virtual.share.switching, abs=0.1)


async def test_unserved_requests_are_reported_and_counted(tmp_path: Path) -> None:
    file = trace(tmp_path, [(0.0, "a", 10, 5), (0.0, "unknown", 10, 5)])
    async with llmux_server(configuration(), tmp_path) as server:
        ended = await run_llmux("replay", str(file), "--url", server.url, directory=tmp_path)
    assert ended.code == 1
    assert "1 not served: 404" in ended.errors
    assert ["replay", "2", "1"] in [line.split()[:3] for line in ended.output.splitlines()]


async def test_an_interrupted_replay_reports_what_it_has(tmp_path: Path) -> None:
    """One request has been answered, one is being answered, one is not yet due."""
    file = trace(tmp_path, [(0.0, "a", 10, 5), (0.0, "b", 10, 10_000), (3600.0, "a", 10, 5)])
    command = ["replay", str(file), "--json", "--url"]
    async with llmux_server(configuration(), tmp_path) as server:
        process = await start_llmux(*command, server.url, directory=tmp_path, environment={})
        try:

            async def reached() -> bool:
                return 'llmux_in_flight{model="b"} 1.0' in await metrics(server)

            # b was woken after a had left, so that the answer of a is complete.
            await eventually(reached, "b answers")
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(DEADLINE_SECONDS):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode == 130, errors.decode()
    document = json.loads(output)
    assert (document["requests"], document["policies"]["replay"]["unserved"]) == (1, 0)


async def test_without_llmux_the_error_names_the_cause(tmp_path: Path) -> None:
    file = trace(tmp_path, REQUESTS)
    ended = await run_llmux("replay", str(file), "--url", "http://127.0.0.1:1", directory=tmp_path)
    assert ended.code == 1
    assert "no metrics from llmux" in ended.errors


class Waits(NamedTuple):
    """What a server has counted until now, over all models."""

    count: float
    seconds: float
    switches: float


async def waits(server: LlmuxProcess) -> Waits:
    total: Counter[str] = Counter()
    for family in text_string_to_metric_families(await metrics(server)):
        for sample in family.samples:
            total[sample.name] += sample.value  # type: ignore[assignment]
    of_waits = "llmux_request_queue_wait_seconds"
    return Waits(total[f"{of_waits}_count"], total[f"{of_waits}_sum"], total["llmux_switches_total"])


async def metrics(server: LlmuxProcess) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{server.url}/metrics") as answer:
        return await answer.text()
