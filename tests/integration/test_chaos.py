"""Engines that fail at random under load: every answer is right or says what went wrong, and at the end all is well."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from llmux.simulation.engine.text import expected_text
from tests.support.bench import DISCARD, OFFLOAD, STOP, Bench, eventually, serving, with_flags

CHAOS_SECONDS = 8.0
CLIENTS = 20
TOKENS = 12
OUR_CODES = {"engine_died", "model_unavailable", "evicted"}

MODELS = {
    "offloaded": with_flags(OFFLOAD, "--token-ms", "2"),
    "discarded": with_flags(DISCARD, "--sim-reload-ms", "20"),
    "stopped": with_flags(STOP, "--sim-worker", "--sim-worker-linger-ms", "200"),
}


class Chaos:
    """Does something bad to a random engine, again and again."""

    def __init__(self, bench: Bench, choice: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._bench = bench
        self._choice = choice
        self._deeds: list[Callable[[str], Awaitable[object]]] = [
            self._kill,
            self._call("die", {}),
            self._call("die", {"how": "exit"}),
            self._call("die-after-tokens", {"tokens": 30}),
            self._call("fail-sleep", {"enabled": True}),
            self._call("fail-wake", {"enabled": True}),
            self._call("fail-reload", {"enabled": True}),
            self._call("hang-wake", {"enabled": True}),
        ]

    async def run(self, seconds: float) -> None:
        """Go on for so long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            model = self._choice.choice(list(MODELS))
            if self._bench.starts(model):
                # The engine may be dead, or not listen yet.
                with suppress(aiohttp.ClientError, OSError, AssertionError, psutil.NoSuchProcess):
                    await self._choice.choice(self._deeds)(model)
            await asyncio.sleep(self._choice.uniform(0.05, 0.5))

    async def _kill(self, model: str) -> None:
        self._bench.engine(model).kill()
        self.done["kill"] += 1

    def _call(self, path: str, body: Any) -> Callable[[str], Awaitable[object]]:
        async def call(model: str) -> None:
            await self._bench.engine_call(model, f"POST /control/{path}", body)
            self.done[path] += 1

        return call


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_answer_is_right_or_says_what_went_wrong(tmp_path: Path, seed: int) -> None:
    async with serving(MODELS, tmp_path, wake_timeout_seconds=1.0) as bench:
        results: Counter[str] = Counter()
        stopping = asyncio.Event()
        chaos = Chaos(bench, random.Random(seed))

        async def client(number: int) -> None:
            choice = random.Random(f"{seed} {number}")
            count = 0
            while not stopping.is_set():
                count += 1
                ask = streamed if choice.random() < 0.5 else whole
                outcome = await ask(bench, choice.choice(list(MODELS)), f"client {number} request {count}")
                results[outcome] += 1
                if outcome != "right":
                    await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(client(number))
            await chaos.run(CHAOS_SECONDS)
            stopping.set()

        assert results["right"] >= 50, results
        assert set(results) <= {"right", *OUR_CODES, "engine's own error"}, results
        assert chaos.done.total() >= 3, chaos.done
        for model in MODELS:
            await eventually(lambda model=model: serves(bench, model), f"{model} is served again", 40.0)
        models = (await bench.status())["models"].values()
        assert all(model["in_flight"] == 0 and model["queue_depth"] == 0 for model in models)


async def serves(bench: Bench, model: str) -> bool:
    return await whole(bench, model, "afterwards") == "right"


async def whole(bench: Bench, model: str, prompt: str) -> str:
    """What became of one request: ``right``, or the code of an error."""
    answer = await bench.ask(model, prompt, max_tokens=TOKENS)
    if answer.status == 200:
        assert (answer.said, answer.document["model"]) == (expected_text(model, prompt, TOKENS), model)
        return "right"
    return answer.code


async def streamed(bench: Bench, model: str, prompt: str) -> str:
    """The same of a stream; whatever it said before it broke off has to be the beginning of the right answer."""
    stream = await bench.begin(model, prompt, stream=True, max_tokens=TOKENS)
    try:
        if await stream.read_head() != 200:
            return await stream.error_code()
        await stream.read()
    finally:
        stream.leave()
    expected = expected_text(model, prompt, TOKENS)
    errors = [event for event in stream.events if event != "[DONE]" and "error" in json.loads(event)]
    if errors:
        assert expected.startswith(stream.said)
        return str(json.loads(errors[-1])["error"]["code"]) if not stream.ended else "engine's own error"
    assert stream.is_complete
    assert stream.said == expected
    return "right"
