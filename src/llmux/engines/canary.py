"""The canary: one small question whose answer must be the same after every wake as when the engine had started."""

import json
import math
import operator
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import structlog

from llmux.engines.control_calls import ControlCallFailed
from llmux.errors import OutputMismatch

log = structlog.get_logger("llmux.canary")

QUESTION = "Once upon a time there was"
TOKENS = 4
LIMIT_SECONDS = 120.0
BEHIND_FROZEN_LIMIT_SECONDS = 600.0
"""With requests frozen in it, the engine first reads again what they had come to."""
TRIES = 2
"""A first difference may come from the other requests of the same batch; one that is repeated does not."""
SAME_DIRECTION = 0.999
"""Cosine between embeddings that are taken for the same."""


class Endpoints(Protocol):
    """What the canary needs of an engine."""

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        """Send a request straight to the engine; raises ControlCallFailed."""


class Canary:
    """Asks one model's engine; remembers what it said first, and what the asking has cost."""

    def __init__(self, served_name: str, check_every: int | None) -> None:
        """``check_every``: how many wakes pass from one check to the next, 1 for each; None: never asks anything."""
        self.baseline: str | None = None
        self.checks = 0
        self.mismatches = 0
        self.seconds = 0.0
        self._served_name = served_name
        self._check_every = check_every
        self._wakes = 0

    async def record(self, endpoints: Endpoints) -> None:
        """Learn the answer of an engine that has just been started; raises ControlCallFailed.

        One that takes too long, or answers neither completions nor embeddings (a ranker, a transcriber), is not
        compared later: that is no reason not to serve.
        """
        self.baseline = None
        if self._check_every is None:
            return
        try:
            self.baseline = await self._ask(endpoints, LIMIT_SECONDS)
        except ControlCallFailed as failure:
            if not failure.is_timeout and not _is_refusal(failure):
                raise
            log.warning("no canary: its wakes are not checked", model=self._served_name, reason=str(failure))

    async def check(self, endpoints: Endpoints, *, has_frozen: bool = False) -> None:
        """Compare after a wake, if this one is to be checked; raises OutputMismatch, ControlCallFailed.

        ``has_frozen``: it is asked in any case, for its answer tells when what was frozen has been read again.
        """
        limit_seconds = BEHIND_FROZEN_LIMIT_SECONDS if has_frozen else LIMIT_SECONDS
        if not self._is_due():
            if has_frozen:
                await self._hear(endpoints, limit_seconds)
            return
        assert self.baseline is not None
        self.checks += 1
        for _ in range(TRIES):
            heard = await self._ask(endpoints, limit_seconds)
            if is_same(self.baseline, heard):
                return
        self.mismatches += 1
        raise OutputMismatch(self.baseline, heard)

    def _is_due(self) -> bool:
        if self._check_every is None or self.baseline is None:
            return False
        self._wakes += 1
        return (self._wakes - 1) % self._check_every == 0

    async def _hear(self, endpoints: Endpoints, limit_seconds: float) -> None:
        """Wait for any answer, be it that the engine does not answer such questions."""
        try:
            await self._ask(endpoints, limit_seconds)
        except ControlCallFailed as failure:
            if not _is_refusal(failure):
                raise

    async def _ask(self, endpoints: Endpoints, limit_seconds: float) -> str:
        began_at = monotonic()
        try:
            return await _ask(endpoints, self._served_name, limit_seconds)
        finally:
            self.seconds += monotonic() - began_at


async def _ask(endpoints: Endpoints, served_name: str, limit_seconds: float) -> str:
    """The answer as text that can be kept: token ids, words, or an embedding. Raises ControlCallFailed."""
    question = {
        "model": served_name,
        "prompt": QUESTION,
        "max_tokens": TOKENS,
        "temperature": 0.0,
        "return_token_ids": True,
    }
    try:
        choice = _first(await endpoints.post("/v1/completions", limit_seconds, question), "choices")
    except ControlCallFailed as failure:
        if failure.status != 404:
            raise
        document = await endpoints.post("/v1/embeddings", limit_seconds, {"model": served_name, "input": QUESTION})
        return json.dumps(_first(document, "data").get("embedding"))
    # Engines that do not know return_token_ids answer with the words alone.
    return json.dumps(choice.get("token_ids") or choice.get("text"))


def _is_refusal(failure: ControlCallFailed) -> bool:
    return failure.status is not None and (failure.status < 500 or failure.status == 501)


def _first(document: Any, key: str) -> dict[str, Any]:
    try:
        first = document[key][0]
    except (KeyError, IndexError, TypeError):
        first = None
    if not isinstance(first, dict):
        raise ControlCallFailed("the canary", f"an answer without {key}: {document!r}")
    return first


def is_same(one: str, other: str) -> bool:
    """Whether two answers are the same; embeddings may differ by rounding."""
    if one == other:
        return True
    first, second = json.loads(one), json.loads(other)
    if not _is_embedding(first) or not _is_embedding(second) or len(first) != len(second):
        return False
    norms = math.hypot(*first) * math.hypot(*second)
    return norms > 0 and sum(map(operator.mul, first, second)) / norms >= SAME_DIRECTION


def _is_embedding(answer: object) -> bool:
    return isinstance(answer, Sequence) and not isinstance(answer, str) and any(isinstance(x, float) for x in answer)
