"""The simulated SGLang's controls, without a process around them."""

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import repeat
from pathlib import Path

import pytest

from llmux.simulation.engine.core import EngineDead, Generation
from llmux.simulation.engine.memory import EngineMemory
from llmux.simulation.engine.sglang import SglangPause, SimulatedSglang, parse
from llmux.simulation.ledger import Ledger

BACKUP = ("--enable-memory-saver", "--enable-weights-cpu-backup")


class Sglang:
    """An engine on a ledger of 1000 MiB, of which it takes 800."""

    def __init__(self, tasks: asyncio.TaskGroup, path: Path, *flags: str) -> None:
        self.ledger = Ledger(path / "gpu.json").create(1000)
        words = ["--model-path", "m", "--latency-ms", "0", "--sim-gpu-ledger", str(self.ledger.path)]
        words += ["--sim-gpu-memory", "800", "--sim-free-ms", "0", "--sim-update-ms", "0", *flags]
        options, timings, faults = parse(words, {})
        memory = EngineMemory(options, os.getpid())
        memory.hold(frozenset())
        self.deaths: list[bool] = []
        self.engine = SimulatedSglang(options, timings, faults, memory, tasks.create_task, self.deaths.append)

    @property
    def used_mib(self) -> int:
        return self.ledger.snapshot().used_mib

    async def until_used(self, mib: int) -> None:
        async with asyncio.timeout(5):
            while self.used_mib != mib:
                await asyncio.sleep(0.001)

    async def said(self) -> str | None:
        one = generation()
        with self.engine.request(one):
            return await self.engine.next_token(one)


def generation() -> Generation:
    return Generation(repeat("word"), 1, 100, "length")


@pytest.fixture
async def tasks() -> AsyncIterator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as group:
        yield group


async def test_with_a_backup_the_weights_come_back(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP)
    await sglang.engine.release(())
    assert sglang.used_mib == 800
    await sglang.until_used(0)
    await sglang.engine.resume_memory(())
    assert sglang.used_mib == 800
    assert await sglang.said() == "word"


async def test_without_a_backup_it_speaks_garbage_until_the_weights_are_updated(
    tasks: asyncio.TaskGroup, tmp_path: Path
) -> None:
    sglang = Sglang(tasks, tmp_path, "--enable-memory-saver")
    await sglang.engine.release(())
    await sglang.engine.resume_memory(["weights", "cuda_graph"])
    refused = await sglang.engine.update_weights("another")
    assert (refused.status, refused.body["success"]) == (400, False)
    await sglang.engine.resume_memory(["kv_cache"])
    assert await sglang.said() == "!"
    assert (await sglang.engine.update_weights("m")).body["success"]
    assert await sglang.said() == "word"


async def test_without_the_memory_saver_a_release_frees_nothing(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path)
    await sglang.engine.release(())
    await asyncio.sleep(0.01)
    assert sglang.used_mib == 800
    assert await sglang.said() == "word"


async def test_tags_are_released_and_resumed_on_their_own(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP)
    await sglang.engine.release(["kv_cache"])
    await sglang.until_used(400)
    await sglang.engine.release(["weights"])
    await sglang.until_used(0)
    await sglang.engine.resume_memory(["weights"])
    assert sglang.used_mib == 400


async def test_what_is_resumed_before_it_was_freed_stays(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP, "--sim-free-ms", "20")
    await sglang.engine.release(())
    await sglang.engine.resume_memory(["weights"])
    await sglang.until_used(400)
    await sglang.engine.resume_memory(["kv_cache", "cuda_graph"])
    assert sglang.used_mib == 800


@pytest.mark.parametrize("released", [(), ("kv_cache",)])
async def test_resuming_what_was_not_released_kills_it(
    tasks: asyncio.TaskGroup, tmp_path: Path, released: tuple[str, ...]
) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP)
    if released:
        await sglang.engine.release(released)
    with pytest.raises(EngineDead):
        await sglang.engine.resume_memory(["weights"])
    assert sglang.deaths


async def test_a_release_under_a_request_kills_it_even_if_it_is_paused_in_place(
    tasks: asyncio.TaskGroup, tmp_path: Path
) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP)
    one = generation()
    with sglang.engine.request(one):
        await sglang.engine.next_token(one)
        await sglang.engine.pause_generation(SglangPause.IN_PLACE)
        with pytest.raises(EngineDead):
            await sglang.engine.release(())
    assert sglang.deaths


async def test_retracted_requests_survive_a_release_and_are_computed_anew(
    tasks: asyncio.TaskGroup, tmp_path: Path
) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP)
    one = generation()
    with sglang.engine.request(one):
        await sglang.engine.next_token(one)
        await sglang.engine.pause_generation(SglangPause.RETRACT)
        assert (sglang.engine.running, sglang.engine.waiting) == (0, 1)
        await sglang.engine.release(())
        next_one = asyncio.ensure_future(sglang.engine.next_token(one))  # noqa: TID251 - no server here
        await sglang.until_used(0)
        await sglang.engine.resume_memory(())
        assert one.prefill_tokens == 2
        assert not next_one.done()
        sglang.engine.resume()
        assert await next_one == "word"
    assert not sglang.deaths


@pytest.mark.parametrize("version", ["0.5.10", "0.5.20"])
async def test_some_versions_die_of_a_release_with_retracted_requests(
    tasks: asyncio.TaskGroup, tmp_path: Path, version: str
) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP, "--sim-version", version)
    one = generation()
    with sglang.engine.request(one):
        await sglang.engine.next_token(one)
        await sglang.engine.pause_generation(SglangPause.RETRACT)
        with pytest.raises(EngineDead):
            await sglang.engine.release(())
    assert sglang.deaths


async def test_older_versions_abort_whatever_the_mode(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path, "--sim-version", "0.5.5")
    one = generation()
    with sglang.engine.request(one):
        await sglang.engine.next_token(one)
        await sglang.engine.pause_generation(SglangPause.RETRACT)
        assert one.aborted


async def test_a_request_on_released_memory_kills_it(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP)
    await sglang.engine.release(["kv_cache"])
    with pytest.raises(EngineDead):
        await sglang.said()
    assert sglang.deaths


async def test_so_does_a_continuation(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP)
    with sglang.engine.request(generation()):
        await sglang.engine.pause_generation(SglangPause.RETRACT)
        await sglang.engine.release(())
        sglang.engine.resume()
    assert sglang.deaths


async def test_an_update_of_released_weights_kills_it(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path, "--enable-memory-saver")
    await sglang.engine.release(())
    with pytest.raises(EngineDead):
        await sglang.engine.update_weights("m")


async def test_an_abort_ends_requests_with_what_they_have_said(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path)
    first, second = generation(), generation()
    sglang.engine.by_identifier = {"chat-1": first, "other": second}
    with sglang.engine.request(first), sglang.engine.request(second):
        sglang.engine.abort_by_identifier("chat")
        assert await sglang.engine.next_token(first) is None
        assert await sglang.engine.next_token(second) == "word"
        await sglang.engine.pause_generation(SglangPause.ABORT)
        assert await sglang.engine.next_token(second) is None
    assert sglang.engine.counters.aborted == 2


async def test_memory_that_another_took_kills_a_resume(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    sglang = Sglang(tasks, tmp_path, *BACKUP)
    await sglang.engine.release(())
    await sglang.until_used(0)
    sglang.ledger.allocate(os.getppid(), 700, "b")
    with pytest.raises(EngineDead):
        await sglang.engine.resume_memory(())


async def test_a_busy_engine_is_healthy_because_of_the_others_tokens(tasks: asyncio.TaskGroup, tmp_path: Path) -> None:
    flags = ("--max-running-requests", "1", "--sim-health-poll-ms", "10")
    sglang = Sglang(tasks, tmp_path, *flags)
    one = generation()
    with sglang.engine.request(one):
        healthy = tasks.create_task(sglang.engine.generates())
        await asyncio.sleep(0)
        await sglang.engine.next_token(one)
        assert await healthy
        assert sglang.engine.counters.request_count == 1


def test_the_command_line() -> None:
    line = "--model-path org/m --served-model-name n --port 5 --api-key k --mem-fraction-static 0.5 --tp 2"
    options, timings, _ = parse([*line.split(), "--max-running-requests", "3", *BACKUP], {})
    assert (options.model, options.name, options.port, options.api_keys) == ("org/m", "n", 5, ("k",))
    assert (options.max_running, options.gpu_memory_utilization) == (3, 0.5)
    assert (options.memory_saver, options.weights_backup, options.health_generates) == (True, True, True)
    assert timings.free_seconds == 0.1
    plain, _, _ = parse(["--model", "m"], {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"})
    assert (plain.port, plain.memory_saver, plain.health_generates) == (30000, False, False)


@pytest.mark.parametrize("words", [[], ["--model-path", "m", "--enable-sleep-mode"], ["serve", "m"]])
def test_a_command_line_of_another_engine_ends_it(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(words, {})
