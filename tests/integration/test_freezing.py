"""A switch that does not wait: requests are frozen with their engine, and go on when it is back."""

import asyncio
import itertools
import json
import signal
import time
from pathlib import Path

import pytest

from llmux.simulation.engine.text import expected_text
from tests.support.bench import DISCARD, OFFLOAD, SLOW, STOP, Bench, eventually, serving, with_flags

TOKENS = 120
FREEZE = {"drain": "freeze"}


def freezing(settings: dict[str, str], *flags: str) -> dict[str, object]:
    return with_flags({**settings, **FREEZE}, *(flags or SLOW))


async def read_with_times(bench: Bench, model: str, tokens: int) -> tuple[list[float], list[bytes]]:
    """A stream as it comes: when each line came, and all lines."""
    stream = await bench.begin(model, "a long story", stream=True, max_tokens=tokens)
    assert await stream.read_head() == 200
    times, lines = [], []
    while (line := await stream._reader.readline()) not in (b"0\r\n", b""):
        times.append(time.monotonic())
        lines.append(line)
    stream.leave()
    return times, lines


def said(lines: list[bytes]) -> str:
    import json

    documents = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    assert not any("error" in document for document in documents)
    return "".join(choice["delta"].get("content") or "" for one in documents for choice in one["choices"])


@pytest.mark.parametrize(
    "settings", [pytest.param(OFFLOAD, marks=pytest.mark.slow), DISCARD], ids=lambda settings: settings["eviction"]
)
async def test_a_long_stream_is_frozen_by_a_switch_and_comes_back_whole(settings: dict[str, str], tmp_path: Path):
    models = {"slow": freezing(settings, *SLOW, "--sim-reload-ms", "50"), "other": with_flags(OFFLOAD)}
    policy = {"min_active_seconds": 0.5}
    async with serving(models, tmp_path, keepalive_seconds=0.1, policy=policy) as bench, asyncio.TaskGroup() as tasks:
        await bench.expect("slow", max_tokens=1)
        await bench.expect("other")
        reading = tasks.create_task(read_with_times(bench, "slow", TOKENS))
        await bench.until_model("slow", in_flight=1)
        await bench.expect("other", "in between")
        answered_at = time.monotonic()
        assert (await bench.status())["models"]["slow"]["frozen"] == 1
        times, lines = await reading
        assert times[0] < answered_at < times[-1], "the other model was not served in mid-stream"
        assert said(lines) == expected_text("slow", "a long story", TOKENS)
        assert lines.count(b"data: [DONE]\n") == 1
        assert b": keep-alive\n" in lines, "the client was left without a sign of life"
        assert max(b - a for a, b in itertools.pairwise(times)) < 3
        stats = await bench.stats("slow")
        assert stats["slept_under_requests"] == 0 and stats["garbage_tokens"] == 0
        assert stats["sleeps"] >= 2


async def has_begun(bench: Bench, model: str) -> bool:
    """Whether an engine has said more than the word that it was asked for first, and its canary."""
    stats = await bench.stats(model)
    return stats["running"] == 1 and stats["tokens"] > 5


async def test_an_engine_that_keeps_its_kv_cache_in_host_memory_reads_it_back_after_a_switch(tmp_path: Path):
    kept = ("--kv-offloading-size", "1")
    models = {"kept": freezing(OFFLOAD, *SLOW, *kept), "lost": freezing(OFFLOAD, *SLOW), "other": with_flags(OFFLOAD)}
    recomputed = {}
    async with serving(models, tmp_path, policy={"min_active_seconds": 0.2}) as bench:
        for model in ("kept", "lost"):
            await bench.expect(model, max_tokens=1)
            async with asyncio.TaskGroup() as tasks:
                prompt = " ".join(["word"] * 1000)
                asking = tasks.create_task(bench.expect(model, prompt, max_tokens=60))
                await bench.until_model(model, in_flight=1)
                await eventually(lambda model=model: has_begun(bench, model), "a token")
                await bench.expect("other")
                await asking
            recomputed[model] = (await bench.stats(model))["recomputed_tokens"]
    assert 0 < recomputed["kept"] < 0.15 * recomputed["lost"]


async def test_a_request_without_a_stream_is_frozen_too(tmp_path: Path):
    models = {"slow": freezing(OFFLOAD), "other": with_flags(OFFLOAD)}
    policy = {"min_active_seconds": 0.2}
    async with serving(models, tmp_path, policy=policy) as bench, asyncio.TaskGroup() as tasks:
        await bench.expect("slow", max_tokens=1)
        asking = tasks.create_task(bench.expect("slow", "no stream", max_tokens=60))
        await bench.until_model("slow", in_flight=1)
        await bench.expect("other")
        assert not asking.done()
        await asking


async def test_a_client_that_leaves_while_frozen_brings_nobody_back(tmp_path: Path):
    models = {"slow": freezing(OFFLOAD), "other": with_flags(OFFLOAD)}
    async with serving(models, tmp_path, policy={"min_active_seconds": 0.5}) as bench:
        stream = await bench.begin("slow", stream=True, max_tokens=TOKENS)
        assert await stream.read_head() == 200
        await bench.expect("other")
        await bench.until_model("slow", frozen=1)
        stream.leave()
        await bench.until_model("slow", frozen=0)
        await bench.expect("other", "still there")
        assert await bench.process_state("slow") == "sleeping:Offload+KeepRunning"
        assert (await bench.stats("slow"))["wakes"] == 0


async def test_an_engine_killed_with_requests_frozen_in_it(tmp_path: Path):
    """What has sent bytes ends with an error event, what has not is answered by the next engine."""
    models = {"slow": freezing(OFFLOAD), "other": with_flags(OFFLOAD)}
    policy = {"min_active_seconds": 0.5}
    async with serving(models, tmp_path, policy=policy) as bench, asyncio.TaskGroup() as tasks:
        stream = await bench.begin("slow", stream=True, max_tokens=TOKENS)
        assert await stream.read_head() == 200
        asking = tasks.create_task(bench.expect("slow", "no stream", max_tokens=40))
        await bench.until_model("slow", in_flight=2)
        await bench.expect("other")
        await bench.until_model("slow", frozen=2)
        bench.engine("slow").kill()
        await stream.read()
        assert json.loads(stream.events[-1])["error"]["code"] == "engine_died"
        assert not stream.is_complete
        stream.leave()
        await asking
        assert bench.starts("slow") == 2


async def test_an_engine_that_cannot_freeze_is_drained(tmp_path: Path):
    models = {"slow": freezing(STOP, "--token-ms", "10"), "other": with_flags(STOP)}
    async with serving(models, tmp_path) as bench:
        async with bench.stream("slow", max_tokens=60) as stream:
            await bench.expect("other")
            await stream.read()
            assert stream.is_complete and stream.said == expected_text("slow", "hello", 60)


async def test_many_frozen_and_queued_requests_are_all_answered_once(tmp_path: Path):
    models = {name: freezing(OFFLOAD, "--token-ms", "20") for name in ("a", "b", "c")}
    async with serving(models, tmp_path, policy={"min_active_seconds": 0.2, "max_wait_seconds": 0.5}) as bench:
        async with asyncio.TaskGroup() as clients:
            for number in range(60):
                name = "abc"[number % 3]
                clients.create_task(bench.expect(name, f"request {number}", max_tokens=10 + number % 40))
        for name in models:
            stats = await bench.stats(name)
            assert stats["slept_under_requests"] == stats["garbage_tokens"] == stats["aborted"] == 0
            assert stats["sleeps"] > 0


async def test_a_model_that_comes_back_different_is_started_anew_before_anyone_hears_it(tmp_path: Path):
    models = {"a": with_flags(OFFLOAD, "--sim-fault", "wake-garbage"), "b": with_flags(OFFLOAD)}
    async with serving(models, tmp_path) as bench:
        await bench.expect("a", "before")
        await bench.expect("b")
        await bench.expect("a", "after")
        assert bench.starts("a") == 2
        entry = (await bench.status())["models"]["a"]
        assert entry["unfaithful"] == ["offload+keep_running"]
        assert entry["eviction"] == {"weights": "retain", "process": "stop"}
        metrics = (await bench.call("GET /metrics")).text
        assert 'llmux_canary_mismatches_total{eviction="offload+keep_running",model="a"} 1.0' in metrics
        assert 'llmux_canary_checks_total{model="a"} 1.0' in metrics


async def test_without_a_canary_the_garbage_is_heard(tmp_path: Path):
    """That the test above tests something: the same fault, and nobody looks."""
    models = {"a": with_flags(OFFLOAD, "--sim-fault", "wake-garbage"), "b": with_flags(OFFLOAD)}
    async with serving(models, tmp_path, canary="off") as bench:
        await bench.expect("a", "before")
        await bench.expect("b")
        answer = await bench.ask("a", "after")
        assert answer.said != expected_text("a", "after", 8)
        assert bench.starts("a") == 1


async def test_an_operator_sees_what_is_frozen(tmp_path: Path):
    models = {"slow": freezing(OFFLOAD), "other": with_flags(OFFLOAD)}
    async with serving(models, tmp_path, policy={"min_active_seconds": 0.2}) as bench:
        async with bench.stream("slow", max_tokens=TOKENS):
            await bench.expect("other")
            await eventually(lambda: _frozen(bench), "frozen in the metrics")


async def _frozen(bench: Bench) -> bool:
    return 'llmux_frozen{model="slow"} 1.0' in (await bench.call("GET /metrics")).text


async def test_sigterm_lets_a_frozen_stream_end_too(tmp_path: Path):
    """What is in flight ends, then the frozen model is woken once more; what waits is refused as ever."""
    models = {"slow": freezing(OFFLOAD), "other": with_flags(STOP, *SLOW), "third": OFFLOAD}
    async with serving(models, tmp_path, policy={"min_active_seconds": 0.5}) as bench, asyncio.TaskGroup() as tasks:
        await bench.expect("slow", max_tokens=1)
        async with bench.stream("slow", "a long story", max_tokens=40) as frozen:
            await frozen.read(2)
            busy = tasks.create_task(bench.expect("other", "busy", max_tokens=20))
            await bench.until_model("slow", frozen=1)
            await bench.until_model("other", in_flight=1)
            waiting = tasks.create_task(bench.ask("third"))
            await bench.until_model("third", queue_depth=1)
            bench.server.process.send_signal(signal.SIGTERM)
            await frozen.read()
            assert frozen.is_complete
            assert frozen.said == expected_text("slow", "a long story", 40)
            assert (await waiting).code == "shutting_down"
            await busy
        async with asyncio.timeout(20):
            assert await bench.server.process.wait() == 0


async def test_a_second_sigterm_ends_a_frozen_stream_at_once(tmp_path: Path):
    models = {"slow": freezing(OFFLOAD), "other": with_flags(OFFLOAD, *SLOW)}
    policy = {"min_active_seconds": 0.5}
    async with serving(models, tmp_path, policy=policy, shutdown_timeout_seconds=600.0) as bench:
        await bench.expect("slow", max_tokens=1)
        async with bench.stream("slow", max_tokens=TOKENS) as frozen, asyncio.TaskGroup() as tasks:
            await frozen.read(2)
            busy = tasks.create_task(bench.ask("other", max_tokens=TOKENS))
            await bench.until_model("slow", frozen=1)
            await bench.until_model("other", in_flight=1)
            bench.server.process.send_signal(signal.SIGTERM)
            await bench.server.wait_for_log("stopping ")
            bench.server.process.send_signal(signal.SIGTERM)
            await frozen.read()
            assert json.loads(frozen.events[-1])["error"]["code"] == "shutting_down"
            assert (await busy).code == "shutting_down"
        assert await bench.server.terminate() == 0
