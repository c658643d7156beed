"""When the canary asks, what counts as the same answer, and which engines are not checked."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from llmux.engines.questions import CanaryExtras
from llmux.errors import ControlCallFailed
from llmux.instances.canary import LIMIT_SECONDS, RECOMPUTE_LIMIT_SECONDS, Canary, OutputMismatch, is_same
from tests.support.engines import vllm_engine


class Engine:
    """Responds from a list, repeating the last entry; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, float]] = []
        self.documents: list[dict[str, Any]] = []

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        self.calls.append((path, timeout_seconds))
        self.documents.append(dict(document or {}))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def completion(*tokens: int, text: str = "words") -> dict[str, Any]:
    return {"choices": [{"text": text, "token_ids": list(tokens) or None}]}


def embedding(*numbers: float) -> dict[str, Any]:
    return {"data": [{"embedding": list(numbers)}]}


NO_COMPLETIONS = ControlCallFailed("POST /v1/completions", "status 404", 404)


async def test_the_same_tokens_pass() -> None:
    engine, canary = Engine(completion(1, 2, 3)), Canary(vllm_engine(), 1)
    await canary.record(engine)
    await canary.check(engine)
    assert json.loads(canary.baseline or "") == [1, 2, 3]
    assert (canary.checks, canary.mismatches) == (1, 0)
    assert canary.seconds > 0


async def test_a_mismatch_that_repeats_is_raised() -> None:
    engine, canary = Engine(completion(1, 2), completion(1, 9)), Canary(vllm_engine(), 1)
    await canary.record(engine)
    with pytest.raises(OutputMismatch, match=r"\[1, 9\], before it was \[1, 2\]"):
        await canary.check(engine)
    assert canary.mismatches == 1
    assert len(engine.calls) == 3


async def test_a_mismatch_that_does_not_repeat_is_ignored() -> None:
    engine, canary = Engine(completion(1, 2), completion(1, 9), completion(1, 2)), Canary(vllm_engine(), 1)
    await canary.record(engine)
    await canary.check(engine)
    assert canary.mismatches == 0


async def test_an_engine_without_token_ids_is_compared_by_text() -> None:
    engine, canary = Engine(completion(text="one"), completion(text="two")), Canary(vllm_engine(), 1)
    await canary.record(engine)
    with pytest.raises(OutputMismatch):
        await canary.check(engine)


async def test_an_engine_without_completions_is_asked_for_an_embedding() -> None:
    answers = (NO_COMPLETIONS, embedding(0.5, 0.5), NO_COMPLETIONS, embedding(0.5, 0.5001), NO_COMPLETIONS)
    engine, canary = (
        Engine(*answers, embedding(-0.5, 0.5), NO_COMPLETIONS, embedding(-0.5, 0.5)),
        Canary(vllm_engine(), 1),
    )
    await canary.record(engine)
    await canary.check(engine)
    with pytest.raises(OutputMismatch):
        await canary.check(engine)


async def test_only_each_nth_wake_is_checked() -> None:
    engine, canary = Engine(completion(1)), Canary(vllm_engine(), 3)
    await canary.record(engine)
    for _ in range(7):
        await canary.check(engine)
    assert canary.checks == 3


async def test_with_frozen_requests_it_is_always_asked_and_given_more_time() -> None:
    engine, canary = Engine(completion(1)), Canary(vllm_engine(), None)
    await canary.record(engine)
    await canary.check(engine)
    assert engine.calls == []
    await canary.check(engine, has_frozen=True)
    assert engine.calls == [("/v1/completions", RECOMPUTE_LIMIT_SECONDS)]
    assert canary.checks == 0


async def test_an_engine_that_is_too_slow_is_not_checked() -> None:
    too_slow = ControlCallFailed("POST /v1/completions", "no answer", is_timeout=True)
    engine, canary = Engine(too_slow, completion(1)), Canary(vllm_engine(), 1)
    await canary.record(engine)
    await canary.check(engine)
    assert engine.calls == [("/v1/completions", LIMIT_SECONDS)]


@pytest.mark.parametrize("answer", [None, {}, {"choices": []}, {"choices": ["x"]}, []])
async def test_a_malformed_answer_is_a_failure(answer: Any) -> None:
    with pytest.raises(ControlCallFailed, match="an answer without choices"):
        await Canary(vllm_engine(), 1).record(Engine(answer))


def test_text_and_embeddings_are_told_apart() -> None:
    assert is_same(json.dumps("a"), json.dumps("a"))
    assert not is_same(json.dumps("a"), json.dumps("b"))
    assert not is_same(json.dumps([1, 2]), json.dumps([1, 3]))
    assert not is_same(json.dumps([0.0, 0.0]), json.dumps([0.5, 0.0]))
    assert not is_same(json.dumps([0.5]), json.dumps([0.5, 0.5]))


@pytest.mark.parametrize("status", [400, 404, 405, 422, 501])
async def test_a_model_that_refuses_such_questions_is_not_checked(status: int) -> None:
    engine, canary = Engine(ControlCallFailed("POST /v1/completions", "status", status)), Canary(vllm_engine(), 1)
    await canary.record(engine)
    await canary.check(engine)
    await canary.check(engine, has_frozen=True)
    assert (canary.baseline, canary.checks) == (None, 0)


async def test_an_engine_that_fails_at_the_first_question_has_not_started() -> None:
    with pytest.raises(ControlCallFailed):
        await Canary(vllm_engine(), 1).record(Engine(ControlCallFailed("POST /v1/completions", "status 500", 500)))


async def test_a_new_engine_is_not_compared_with_the_last_one() -> None:
    too_slow = ControlCallFailed("POST /v1/completions", "no answer", is_timeout=True)
    engine, canary = Engine(completion(1), too_slow, completion(2)), Canary(vllm_engine(), 1)
    await canary.record(engine)
    await canary.record(engine)
    await canary.check(engine)
    assert canary.baseline is None


def described(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}]}


async def test_an_adapter_and_an_image_are_asked_as_well() -> None:
    extras = CanaryExtras(adapter="sql", image="data:image/png;base64,AA==")
    same = (completion(1), completion(2), described("a cat"))
    engine, canary = (
        Engine(*same, *same, completion(1), completion(9), described("a cat")),
        Canary(vllm_engine(), 1, extras),
    )
    await canary.record(engine)
    await canary.check(engine)
    assert [path for path, _ in engine.calls[:3]] == ["/v1/completions", "/v1/completions", "/v1/chat/completions"]
    assert [document["model"] for document in engine.documents[:3]] == ["m", "sql", "m"]
    engine.answers = [completion(1), completion(9), described("a cat")] * 2
    with pytest.raises(OutputMismatch):
        await canary.check(engine)


@pytest.mark.parametrize(("minimum", "is_quick"), [(0.001, True), (1e12, False)])
async def test_an_engine_that_answers_right_and_too_slowly_is_a_mismatch(minimum: float, is_quick: bool) -> None:
    long = {**completion(1), "usage": {"completion_tokens": 64}}
    canary = Canary(vllm_engine(), 1, CanaryExtras(min_tokens_per_second=minimum))
    engine = Engine(long)
    await canary.record(engine)
    if is_quick:
        await canary.check(engine)
    else:
        with pytest.raises(OutputMismatch, match="tokens a second"):
            await canary.check(engine)
    assert canary.mismatches == (0 if is_quick else 1)
