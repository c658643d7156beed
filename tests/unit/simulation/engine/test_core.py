import asyncio
from contextlib import ExitStack
from itertools import repeat

import pytest

from llmux.simulation.engine.core import Generation, PauseMode
from llmux.simulation.engine.memory import EngineMemory
from llmux.simulation.engine.options import Timings, parse
from llmux.simulation.engine.vllm import SimulatedVllm


class RecordingTimings(Timings):
    """Records how full the batch was before each token; tokens take no time."""

    def __init__(self, **durations: float) -> None:
        super().__init__(**durations)
        self.shares: list[float] = []

    def before_token(self, batch_share: float = 0.0) -> float:
        self.shares.append(batch_share)
        return 0.0


def engine_with(timings: Timings, *flags: str) -> SimulatedVllm:
    options, _, faults = parse(["serve", "m", "--enable-sleep-mode", "--max-num-seqs", "5", *flags], {})
    return SimulatedVllm(options, timings, faults, EngineMemory(options, 1), lambda at_once: None)


def generation(prompt_tokens: int = 0) -> Generation:
    return Generation(repeat("word"), prompt_tokens, 100, "length")


async def test_only_prefilled_requests_slow_each_other_down() -> None:
    timings = RecordingTimings(first_token_seconds=0.0)
    engine = engine_with(timings)
    first, second, third = generation(), generation(), generation()
    with engine.request(first), engine.request(second), engine.request(third):
        await engine.next_token(first)
        await engine.next_token(first)
        await engine.next_token(second)
        await engine.next_token(first)
    assert timings.shares == [0.0, 0.25]


async def test_a_recompute_slows_no_other_request_down() -> None:
    timings = RecordingTimings(first_token_seconds=0.0)
    engine = engine_with(timings)
    first, second = generation(), generation()
    with engine.request(first), engine.request(second):
        await engine.next_token(first)
        await engine.next_token(second)
        await engine.sleep(1, PauseMode.KEEP)
        await engine.wake(())
        await engine.next_token(first)
        await engine.next_token(first)
    assert timings.shares == [0.0]


async def test_suspended_requests_recompute_in_order_of_arrival() -> None:
    engine = engine_with(Timings(first_token_seconds=0.0, prefill_tokens_per_second=1e6))
    generations = [generation(prompt_tokens=1000) for _ in range(5)]
    order: list[int] = []

    async def resume(number: int) -> None:
        await engine.next_token(generations[number])
        order.append(number)

    with ExitStack() as requests:
        for one in generations:
            requests.enter_context(engine.request(one))
        for one in generations:
            await engine.next_token(one)
        await engine.sleep(1, PauseMode.KEEP)
        async with asyncio.TaskGroup() as tasks:
            # Their tasks run in another order than they arrived in.
            for number in (3, 1, 4, 0, 2):
                tasks.create_task(resume(number))
            await asyncio.sleep(0)
            await engine.wake(())
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("flags", "clears_connector", "recomputed"),
    [((), False, 1001 + 500), (("--kv-offloading-size", "8"), True, 1501), (("--kv-offloading-size", "8"), False, 601)],
)
async def test_kv_cache_that_a_sleep_leaves_in_host_memory_is_read_back(
    flags: tuple[str, ...], clears_connector: bool, recomputed: int
) -> None:
    engine = engine_with(Timings(first_token_seconds=0.0), *flags)
    begun, not_begun = generation(prompt_tokens=1000), generation(prompt_tokens=500)
    with engine.request(begun), engine.request(not_begun):
        await engine.next_token(begun)
        await engine.sleep(1, PauseMode.KEEP, clears_connector=clears_connector)
        await engine.wake(())
        await engine.next_token(begun)
    # 1,000 tokens of a prompt and one of its answer are a tenth of the work; a prompt that was not read is read.
    assert engine.counters.recomputed_tokens == recomputed
