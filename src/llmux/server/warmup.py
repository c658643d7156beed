"""Warm-up: each model is started, asked once, and put to sleep, so that first requests find it asleep, not absent."""

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import structlog

from llmux.engines.control_calls import ControlCallFailed
from llmux.errors import CommandFailed, LlmuxError
from llmux.runtime.operations import Operations

log = structlog.get_logger("llmux.warmup")

PROBE_SECONDS = 30.0
QUESTION = "What is 2 + 2? Answer with the number only."


class Endpoints(Protocol):
    """What warm-up needs of an engine."""

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        """Send a request straight to the engine; raises ControlCallFailed."""


class WarmupFailed(LlmuxError):
    """A model could not be warmed; llmux does not start."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"warm-up of '{model}' failed: {reason}")


async def warm_up(operations: Operations, engines: Mapping[str, Endpoints], models: Sequence[str]) -> None:
    """Warm the models one after the other, each ending as its eviction leaves it. Raises WarmupFailed."""
    for number, model in enumerate(models, 1):
        began_at = monotonic()
        log.info("warming up", model=model, number=number, of=len(models))
        try:
            await operations.wake(model)
            await probe(engines[model], model)
            await operations.sleep(model)
        except (CommandFailed, ControlCallFailed) as error:
            raise WarmupFailed(model, str(error)) from error
        log.info("warmed up", model=model, seconds=round(monotonic() - began_at, 3))


async def probe(engine: Endpoints, served_name: str) -> str:
    """Ask an engine one small greedy question and return its answer; raises ControlCallFailed.

    An engine that does not chat (404) is asked for an embedding instead, whose answer is empty here.
    """
    question = {
        "model": served_name,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0.0,
        "seed": 42,
        "max_tokens": 10,
    }
    try:
        answer = await engine.post("/v1/chat/completions", PROBE_SECONDS, question)
    except ControlCallFailed as failure:
        if failure.status != 404:
            raise
        await engine.post("/v1/embeddings", PROBE_SECONDS, {"model": served_name, "input": QUESTION})
        return ""
    try:
        return str(answer["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        raise ControlCallFailed("POST /v1/chat/completions", f"an answer without a choice: {answer!r}") from None
