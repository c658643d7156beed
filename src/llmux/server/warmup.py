"""Warm-up: start each model, ask it once, and evict it, so that its first request finds it asleep instead of cold."""

from collections.abc import Mapping, Sequence
from time import monotonic

import structlog

from llmux.engines.question import Endpoints, probe
from llmux.errors import CommandFailed, ControlCallFailed, LlmuxError
from llmux.runtime.operations import Operations

log = structlog.get_logger("llmux.warmup")


class WarmupFailed(LlmuxError):
    """A model could not be warmed up; llmux does not start."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"warm-up of '{model}' failed: {reason}")


async def warm_up(operations: Operations, engines: Mapping[str, Endpoints], models: Sequence[str]) -> None:
    """Warm up the models one after the other; each is evicted in its configured way. Raises WarmupFailed."""
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
