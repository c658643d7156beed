"""The canary: one small question whose answer must be the same after every wake as when the engine had started."""

import json
import math
import operator
from collections.abc import Sequence
from time import monotonic
from typing import Any

import structlog

from llmux.engines.base import Engine
from llmux.engines.calls import Endpoints
from llmux.engines.questions import CANARY, EMBEDDINGS, SPEED, SPEED_TOKENS, CanaryExtras, Question, ask, is_refusal
from llmux.errors import ControlCallFailed, LlmuxError

log = structlog.get_logger("llmux.canary")

LIMIT_SECONDS = 120.0
RECOMPUTE_LIMIT_SECONDS = 600.0
"""With suspended requests in the engine, which first recomputes their KV cache before it answers."""
TRIES = 2
"""A first mismatch may come from other requests in the same batch; one that repeats does not."""
COSINE_MIN = 0.999
"""Embeddings that are at least this similar count as equal: they vary by rounding."""


class OutputMismatch(LlmuxError):
    """A woken engine answers the canary differently than before it left."""

    def __init__(self, expected: str, actual: str) -> None:
        self.expected = expected
        self.actual = actual
        super().__init__(f"after its wake the engine answers the canary with {actual}, before it was {expected}")


class Canary:
    """Checks one model's engine against its first answer, and counts checks, mismatches and their time."""

    def __init__(self, engine: Engine, check_every: int | None, extras: CanaryExtras | None = None) -> None:
        """``check_every``: check one wake in so many, 1 for each; None: never."""
        self.baseline: str | None = None
        """The answer of the engine when it had just started; None if wakes are not checked."""
        self.checks = 0
        self.mismatches = 0
        self.seconds = 0.0
        """Time spent on asking."""
        self._served_name = engine.served_names[0]
        self._extras = extras or CanaryExtras()
        own = [] if engine.canary is None else [engine.canary.with_fields(engine.added_fields())]
        self._questions = (*own, *self._extras.questions())
        self._check_every = check_every if self._questions else None
        self._wakes = 0

    async def record(self, endpoints: Endpoints) -> None:
        """Learn the answer of an engine that has just started; raises ControlCallFailed.

        An engine that takes too long, or answers neither completions nor embeddings (a reranker, a transcriber), is not
        checked later: that is no reason not to serve.
        """
        self.baseline = None
        if self._check_every is None:
            return
        try:
            self.baseline = await self._ask(endpoints, LIMIT_SECONDS)
        except ControlCallFailed as failure:
            if not failure.is_timeout and not is_refusal(failure):
                raise
            log.warning("no canary: its wakes are not checked", model=self._served_name, reason=str(failure))

    async def check(self, endpoints: Endpoints, *, has_frozen: bool = False) -> None:
        """Compare the answer after a wake, if this wake is to be checked; raises OutputMismatch, ControlCallFailed.

        ``has_frozen``: ask in any case, since an answer shows that suspended requests have been recomputed.
        """
        limit_seconds = RECOMPUTE_LIMIT_SECONDS if has_frozen else LIMIT_SECONDS
        if not self._is_due():
            if has_frozen:
                await self._wait_for_any_answer(endpoints, limit_seconds)
            return
        assert self.baseline is not None
        self.checks += 1
        for _ in range(TRIES):
            answer = await self._ask(endpoints, limit_seconds)
            if is_same(self.baseline, answer):
                break
        else:
            self.mismatches += 1
            raise OutputMismatch(self.baseline, answer)
        await self._check_speed(endpoints, limit_seconds)

    async def _check_speed(self, endpoints: Endpoints, limit_seconds: float) -> None:
        minimum = self._extras.min_tokens_per_second
        if minimum is None:
            return
        for _ in range(TRIES):
            began_at = monotonic()
            _, document = await ask(endpoints, SPEED, self._served_name, limit_seconds)
            seconds = monotonic() - began_at
            self.seconds += seconds
            speed = _token_count(document) / seconds
            if speed >= minimum:
                return
        self.mismatches += 1
        raise OutputMismatch(f"{minimum:g} tokens a second at least", f"{speed:.1f}")

    def _is_due(self) -> bool:
        if self._check_every is None or self.baseline is None:
            return False
        self._wakes += 1
        return (self._wakes - 1) % self._check_every == 0

    async def _wait_for_any_answer(self, endpoints: Endpoints, limit_seconds: float) -> None:
        """Also the refusal of an engine that does not answer such questions shows that it works."""
        try:
            await self._ask(endpoints, limit_seconds)
        except ControlCallFailed as failure:
            if not is_refusal(failure):
                raise

    async def _ask(self, endpoints: Endpoints, limit_seconds: float) -> str:
        """The answer, or a list of the answers to several questions, as text that can be kept.

        Raises ControlCallFailed.
        """
        answers = [await self._ask_one(endpoints, question, limit_seconds) for question in self._questions or (CANARY,)]
        return answers[0] if len(answers) == 1 else json.dumps(answers)

    async def _ask_one(self, endpoints: Endpoints, question: Question, limit_seconds: float) -> str:
        """One answer: token ids, words, or an embedding, as JSON."""
        began_at = monotonic()
        try:
            path, document = await ask(endpoints, question, self._served_name, limit_seconds)
        finally:
            self.seconds += monotonic() - began_at
        if path == EMBEDDINGS:
            return json.dumps(_first(document, "data").get("embedding"))
        choice = _first(document, "choices")
        # Engines that do not know return_token_ids answer with the words alone.
        message = choice.get("message")
        words = message.get("content") if isinstance(message, dict) else choice.get("text")
        return json.dumps(choice.get("token_ids") or words)


def _first(document: Any, key: str) -> dict[str, Any]:
    try:
        first = document[key][0]
    except (KeyError, IndexError, TypeError):
        first = None
    if not isinstance(first, dict):
        raise ControlCallFailed("the canary", f"an answer without {key}: {document!r}")
    return first


def is_same(one: str, other: str) -> bool:
    """Whether two answers are equal, embeddings up to rounding."""
    if one == other:
        return True
    first, second = json.loads(one), json.loads(other)
    if _is_several(first) and _is_several(second) and len(first) == len(second):
        return all(map(is_same, first, second))
    if not _is_embedding(first) or not _is_embedding(second) or len(first) != len(second):
        return False
    norms = math.hypot(*first) * math.hypot(*second)
    return norms > 0 and sum(map(operator.mul, first, second)) / norms >= COSINE_MIN


def _is_several(answer: object) -> bool:
    return isinstance(answer, list) and bool(answer) and all(isinstance(one, str) for one in answer)


def _token_count(document: Any) -> int:
    usage = document.get("usage") if isinstance(document, dict) else None
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else SPEED_TOKENS


def _is_embedding(answer: object) -> bool:
    return isinstance(answer, Sequence) and not isinstance(answer, str) and any(isinstance(x, float) for x in answer)
