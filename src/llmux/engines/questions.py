"""One small greedy question to an engine, sent straight to it: the canary and the warm-up each have theirs.

An engine that does not know the endpoint (404) is sent the question's text for an embedding instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmux.engines.calls import Endpoints
from llmux.errors import ControlCallFailed

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

CANARY_TEXT = "Once upon a time there was"
PROBE_TEXT = "What is 2 + 2? Answer with the number only."
PROBE_LIMIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, where, and with which fields beside ``model`` and ``temperature``."""

    path: str
    text: str
    fields: Mapping[str, Any]


CANARY = Question(COMPLETIONS, CANARY_TEXT, {"prompt": CANARY_TEXT, "max_tokens": 4, "return_token_ids": True})
ONE_TOKEN = Question(COMPLETIONS, CANARY_TEXT, {"prompt": CANARY_TEXT, "max_tokens": 1})
PROBE = Question(
    CHAT, PROBE_TEXT, {"messages": [{"role": "user", "content": PROBE_TEXT}], "seed": 42, "max_tokens": 10}
)


async def ask(endpoints: Endpoints, question: Question, served_name: str, limit_seconds: float) -> tuple[str, Any]:
    """Ask the question; returns the path that answered, and its JSON document. Raises ControlCallFailed."""
    document = {"model": served_name, "temperature": 0.0, **question.fields}
    try:
        return question.path, await endpoints.post(question.path, limit_seconds, document)
    except ControlCallFailed as failure:
        if failure.status != 404:
            raise
    document = {"model": served_name, "input": question.text}
    return EMBEDDINGS, await endpoints.post(EMBEDDINGS, limit_seconds, document)


async def probe(endpoints: Endpoints, served_name: str) -> str:
    """Ask the warm-up's question; returns the text of the answer, empty for an embedding. Raises ControlCallFailed."""
    path, document = await ask(endpoints, PROBE, served_name, PROBE_LIMIT_SECONDS)
    if path == EMBEDDINGS:
        return ""
    try:
        return str(document["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        raise ControlCallFailed(f"POST {path}", f"an answer without a choice: {document!r}") from None
