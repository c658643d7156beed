"""The main job: many clients of the stock openai library, four models, one GPU that holds one of them."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

from llmux.simulation.engine.text import expected_text
from tests.support.bench import DISCARD, OFFLOAD, STOP, Bench, eventually, serving, with_flags

REQUESTS = 1000
CONNECTIONS = 50
GPU_MIB = 1050
"""One awake (900) beside three asleep (50 each)."""

MODELS = {
    "offloaded": with_flags(OFFLOAD),
    "discarded": with_flags(DISCARD, "--sim-reload-ms", "5"),
    "stopped": with_flags(STOP),
    "offloaded-too": with_flags(OFFLOAD, "--sim-sleep-ms", "5", "--sim-wake-ms", "5", "--token-ms", "1"),
}
LONG_ANSWER_TOKENS = 200


class Patience(Enum):
    """When a client leaves."""

    NEVER = auto()
    BEFORE_AN_ANSWER = auto()
    IN_MID_STREAM = auto()


@dataclass(frozen=True)
class Plan:
    """One client's request."""

    number: int
    model: str
    streamed: bool
    tokens: int
    patience: Patience
    leaves_after_seconds: float
    leaves_after_chunks: int

    @property
    def prompt(self) -> str:
        return f"request {self.number}"

    @property
    def expected(self) -> str:
        return expected_text(self.model, self.prompt, self.tokens)


@dataclass
class Results:
    """What became of the clients."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    left: Counter[Patience] = field(default_factory=Counter)


def plans(seed: int) -> list[Plan]:
    """The clients, in order. A third of them leave, half of these in mid-stream."""
    choice = random.Random(seed)
    made = []
    for number in range(REQUESTS):
        patience = choice.choice(
            [*[Patience.NEVER] * 4, Patience.BEFORE_AN_ANSWER, Patience.IN_MID_STREAM],
        )
        streamed = patience is Patience.IN_MID_STREAM or choice.random() < 0.5
        tokens = LONG_ANSWER_TOKENS if patience is Patience.IN_MID_STREAM else choice.randint(1, 30)
        (model,) = choice.choices(list(MODELS), weights=(3, 3, 1, 3))
        made.append(
            Plan(number, model, streamed, tokens, patience, choice.uniform(0.0, 0.4), choice.randint(1, 5)),
        )
    return made


@pytest.mark.slow
async def test_a_thousand_requests_over_four_models(tmp_path: Path) -> None:
    async with serving(MODELS, tmp_path, gpu_mib=GPU_MIB) as bench:
        results = await perform(bench, plans(seed=77))

        assert results.wrong == []
        assert results.right + results.left.total() == REQUESTS
        assert results.right >= REQUESTS * 0.6
        assert results.left[Patience.BEFORE_AN_ANSWER] >= 50
        assert results.left[Patience.IN_MID_STREAM] >= 100

        await eventually(lambda: is_quiet(bench), "nothing in flight and nobody waiting")
        await check_engines(bench)


async def perform(bench: Bench, requests: list[Plan]) -> Results:
    """All requests, always as many at a time as there are connections."""
    results = Results()
    order = iter(requests)
    async with AsyncOpenAI(base_url=f"{bench.server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:

        async def connection() -> None:
            for plan in order:
                await one(client, plan, results)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONNECTIONS):
                tasks.create_task(connection())
    return results


async def one(client: AsyncOpenAI, plan: Plan, results: Results) -> None:
    """One client, from its request to its answer or its leaving."""
    leaves_after = plan.leaves_after_seconds if plan.patience is Patience.BEFORE_AN_ANSWER else None
    try:
        async with asyncio.timeout(leaves_after):
            said, model = await (streamed(client, plan) if plan.streamed else whole(client, plan))
    except TimeoutError:
        results.left[plan.patience] += 1
    else:
        if said is None:
            results.left[plan.patience] += 1
        elif (said, model) == (plan.expected, plan.model):
            results.right += 1
        else:
            results.wrong.append(f"{plan}: {model} said {said!r}")


async def whole(client: AsyncOpenAI, plan: Plan) -> tuple[str | None, str]:
    """The text and the model of an answer in one piece."""
    answer = await client.chat.completions.create(
        model=plan.model, messages=[{"role": "user", "content": plan.prompt}], max_tokens=plan.tokens
    )
    assert answer.choices[0].finish_reason == "length"
    return answer.choices[0].message.content or "", answer.model


async def streamed(client: AsyncOpenAI, plan: Plan) -> tuple[str | None, str]:
    """The text and the model of a stream; no text if the client left it."""
    stream: AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
        model=plan.model,
        messages=[{"role": "user", "content": plan.prompt}],
        max_tokens=plan.tokens,
        stream=True,
    )
    said, models, reasons, chunks = "", set(), [], 0
    async with stream:
        async for chunk in stream:
            models.add(chunk.model)
            said += chunk.choices[0].delta.content or ""
            reasons += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []
            chunks += 1
            if plan.patience is Patience.IN_MID_STREAM and chunks > plan.leaves_after_chunks:
                return None, plan.model
    assert reasons == ["length"]
    (model,) = models
    return said, model


async def is_quiet(bench: Bench) -> bool:
    models = (await bench.status())["models"].values()
    return all(model["in_flight"] == 0 and model["queue_depth"] == 0 for model in models)


async def check_engines(bench: Bench) -> None:
    """What the engines that were never stopped have to say."""
    for model in ("offloaded", "discarded", "offloaded-too"):
        assert bench.starts(model) == 1
        stats = await bench.stats(model)
        assert stats["requests_while_asleep"] == 0
        assert stats["slept_under_requests"] == 0
        assert stats["garbage_tokens"] == 0
        assert stats["running"] == 0
        assert stats["sleeps"] >= 5
    assert bench.starts("stopped") >= 5
