"""The bodies that ask a question, and the fallback to embeddings."""

from collections.abc import Mapping
from typing import Any

import pytest

from llmux.engines.questions import CANARY, ask, probe
from llmux.errors import ControlCallFailed


class Engine:
    """Responds to each path with a document or an exception."""

    def __init__(self, responses: Mapping[str, Any]) -> None:
        self.responses = responses
        self.requests: list[tuple[str, float, Mapping[str, Any] | None]] = []

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        self.requests.append((path, timeout_seconds, document))
        response = self.responses[path]
        if isinstance(response, Exception):
            raise response
        return response


def status(code: int) -> ControlCallFailed:
    return ControlCallFailed("POST", f"status {code}", code)


async def test_the_canary_asks_for_token_ids() -> None:
    engine = Engine({"/v1/completions": {"choices": []}})
    assert await ask(engine, CANARY, "m", 5.0) == ("/v1/completions", {"choices": []})
    body = {
        "model": "m",
        "prompt": "Once upon a time there was",
        "max_tokens": 4,
        "temperature": 0.0,
        "return_token_ids": True,
    }
    assert engine.requests == [("/v1/completions", 5.0, body)]


async def test_the_probe_chats() -> None:
    engine = Engine({"/v1/chat/completions": {"choices": [{"message": {"content": "4"}}]}})
    assert await probe(engine, "m") == "4"
    question = "What is 2 + 2? Answer with the number only."
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0,
        "seed": 42,
        "max_tokens": 10,
    }
    assert engine.requests == [("/v1/chat/completions", 30.0, body)]


async def test_an_engine_without_the_endpoint_is_asked_for_an_embedding() -> None:
    engine = Engine({"/v1/chat/completions": status(404), "/v1/embeddings": {"data": []}})
    assert await probe(engine, "m") == ""
    body = {"model": "m", "input": "What is 2 + 2? Answer with the number only."}
    assert engine.requests[1] == ("/v1/embeddings", 30.0, body)


async def test_other_failures_are_raised() -> None:
    engine = Engine({"/v1/completions": status(500)})
    with pytest.raises(ControlCallFailed, match="status 500"):
        await ask(engine, CANARY, "m", 5.0)


async def test_an_answer_without_a_choice() -> None:
    engine = Engine({"/v1/chat/completions": {"choices": []}})
    with pytest.raises(ControlCallFailed, match="an answer without a choice"):
        await probe(engine, "m")
