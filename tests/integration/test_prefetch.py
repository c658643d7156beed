"""The files of models that wait, or that will probably be asked for, are in the page cache when they are needed."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.engine.text import expected_text
from tests.support.bench import DISCARD, HELD_TOKENS, SLOW, STOP, Bench, eventually, serving, with_flags
from tests.support.cold_files import MIB, cached_mib, drop, write_cold

WEIGHTS_MIB = 32


def reading(directory: Path, **settings: Any) -> dict[str, Any]:
    """A model whose engine reads the files in the directory when it loads them."""
    return with_flags({**settings, "model_path": str(directory)}, "--sim-read-weights")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "b-weights"
    made.mkdir()
    write_cold(made / "model.safetensors", WEIGHTS_MIB)
    return made


async def metric(bench: Bench, name: str, **labels: str) -> float:
    """One value of /metrics."""
    text = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    lines = (await bench.call("GET /metrics")).text.splitlines()
    (value,) = [line.split()[-1] for line in lines if line.startswith(f"{name}{{{text}}} ")]
    return float(value)


async def wakes(bench: Bench, model: str) -> dict[str, int]:
    """How often a model found its files where."""
    found = {word: await metric(bench, "llmux_prefetch_wakes_total", model=model, found=word) for word in WORDS}
    return {word: int(number) for word, number in found.items() if number}


WORDS = ("hit", "partial", "warm", "miss")


@pytest.mark.parametrize("eviction", [STOP, DISCARD], ids=["cold start", "discarded weights"])
async def test_a_model_that_waits_finds_its_files_in_the_page_cache(
    eviction: dict[str, Any], tmp_path: Path, directory: Path
) -> None:
    weights = directory / "model.safetensors"
    models = {"a": with_flags(eviction, *SLOW), "b": reading(directory, **eviction)}
    async with serving(models, tmp_path) as bench:
        await bench.expect("b")
        await bench.expect("a")
        drop(weights)
        assert cached_mib(weights) < WEIGHTS_MIB
        async with asyncio.TaskGroup() as tasks, bench.held_stream("a") as stream:
            waiting = tasks.create_task(bench.ask("b"))
            await bench.until_model("b", queue_depth=1)
            await eventually(lambda: cached_mib(weights) == WEIGHTS_MIB, "the files are in the page cache")
            assert await bench.process_state("b") != "running"
            await bench.let_go("a")
            await stream.read()
            assert stream.said == expected_text("a", "hello", HELD_TOKENS), "the resident was not disturbed"
        assert waiting.result().said == expected_text("b", "hello", 8)

        async def is_counted() -> bool:
            return await wakes(bench, "b") == {"miss": 1, "hit": 1}

        await eventually(is_counted, "the first start was a miss, the way back a hit")
        assert await metric(bench, "llmux_prefetch_used_bytes_total", model="b") > 0
        assert await metric(bench, "llmux_prefetch_saved_seconds_total", model="b") > 0


async def test_status_shows_what_is_being_read(tmp_path: Path, directory: Path) -> None:
    models = {"a": with_flags(STOP, *SLOW), "b": reading(directory, **STOP)}
    async with serving(models, tmp_path, prefetch={"rate_max": 1}) as bench:
        async with asyncio.TaskGroup() as tasks, bench.held_stream("a") as stream:
            waiting = tasks.create_task(bench.ask("b"))

            async def is_shown() -> bool:
                shown = (await bench.status())["prefetch"]
                return shown is not None and shown["model"] == "b" and shown["total_mib"] == WEIGHTS_MIB

            await eventually(is_shown, "b is being read")
            await bench.let_go("a")
            await stream.read()
        assert waiting.result().status == 200, "the wake did not wait for the slow reading"
        assert (await bench.status())["prefetch"] is None


async def test_nothing_is_read_where_that_is_configured(tmp_path: Path, directory: Path) -> None:
    models = {"a": with_flags(STOP, *SLOW), "b": reading(directory, **STOP)}
    async with serving(models, tmp_path, prefetch={"models": "none"}) as bench:
        async with asyncio.TaskGroup() as tasks, bench.held_stream("a"):
            waiting = tasks.create_task(bench.ask("b"))
            await bench.until_model("b", queue_depth=1)
            assert cached_mib(directory / "model.safetensors") == 0
            await bench.let_go("a")
        assert waiting.result().status == 200
        assert "llmux_prefetch" not in (await bench.call("GET /metrics")).text


async def test_what_followed_before_the_restart_is_predicted_after_it(tmp_path: Path, directory: Path) -> None:
    log = tmp_path / "access.jsonl"
    demands = [
        {"time": f"2026-01-01T00:0{n}:00+00:00", "model": model, "queue_ms": 9} for n, model in enumerate("ababab")
    ]
    log.write_text("".join(json.dumps(demand) + "\n" for demand in demands))
    models = {"a": STOP, "b": reading(directory, **STOP), "c": STOP}
    prefetch = {"models": "predicted"}
    async with serving(models, tmp_path, access_log=str(log), prefetch=prefetch) as bench:
        await bench.expect("a")
        weights = directory / "model.safetensors"
        await eventually(lambda: cached_mib(weights) == WEIGHTS_MIB, "the files of a's successor are read")
        await bench.expect("b")

        async def is_counted() -> bool:
            return await wakes(bench, "b") == {"hit": 1}

        await eventually(is_counted, "a hit")
        read = await metric(bench, "llmux_prefetch_read_bytes_total", model="b", reason="predicted")
        assert 0 < read <= WEIGHTS_MIB * MIB, "the kernel reads on by itself"
