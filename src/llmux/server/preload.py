"""Preloading: bring the models that are to be there from the start onto the GPUs, and leave them there."""

import asyncio
from collections.abc import Sequence
from time import monotonic

import structlog

from llmux.errors import CommandFailed, LlmuxError
from llmux.runtime.operations import Operations

log = structlog.get_logger("llmux.preload")


class PreloadFailed(LlmuxError):
    """A model could not be brought onto the GPUs; llmux ends."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"'{model}' could not be preloaded: {reason}")


class Preload:
    """One preloading of groups of models: one group after the other, the models of each at the same time.

    They are started by commands, to which no time limit of requests applies. No question is asked: unlike those that
    a warm-up puts to sleep again, they are about to be asked by clients, and the canary has been answered.
    """

    def __init__(self, operations: Operations, groups: Sequence[Sequence[str]]) -> None:
        self._operations = operations
        self._groups = groups
        self._number = 0
        self._group_began_at = monotonic()

    @property
    def progress(self) -> str:
        """How far it is: ``preloading 1 and 2 of 3: qwen and llama, 35 s``."""
        first = 1 + sum(len(group) for group in self._groups[: self._number])
        group = self._groups[self._number]
        numbers = " and ".join(str(first + position) for position in range(len(group)))
        models = " and ".join(group)
        total = sum(map(len, self._groups))
        return f"preloading {numbers} of {total}: {models}, {monotonic() - self._group_began_at:.0f} s"

    async def run(self) -> None:
        """Preload every model. Raises PreloadFailed."""
        for number, group in enumerate(self._groups):
            self._number, self._group_began_at = number, monotonic()
            await asyncio.gather(*map(self._bring, group))

    async def _bring(self, model: str) -> None:
        log.info("preloading", model=model)
        began_at = monotonic()
        try:
            await self._operations.wake(model)
        except CommandFailed as error:
            raise PreloadFailed(model, str(error)) from error
        log.info("preloaded", model=model, seconds=round(monotonic() - began_at, 3))
