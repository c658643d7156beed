"""One small greedy question to an engine, sent straight to it: the canary and the warm-up each have theirs.

An engine that does not know the endpoint (404) is sent the question's text for an embedding instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llmux.engines.calls import Endpoints
from llmux.errors import ControlCallFailed

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

CANARY_TEXT = "Once upon a time there was"
PROBE_TEXT = "What is 2 + 2? Answer with the number only."
IMAGE_TEXT = "Describe this image in a few words."
PROBE_LIMIT_SECONDS = 30.0
SPEED_TOKENS = 64
"""Enough that the prefill hardly counts."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, where, and with which fields beside ``model`` and ``temperature``."""

    path: str
    text: str
    fields: Mapping[str, Any]

    def with_fields(self, fields: Mapping[str, object]) -> "Question":
        """The same question with further fields."""
        return replace(self, fields={**self.fields, **fields})


CANARY = Question(COMPLETIONS, CANARY_TEXT, {"prompt": CANARY_TEXT, "max_tokens": 4, "return_token_ids": True})
ONE_TOKEN = Question(COMPLETIONS, CANARY_TEXT, {"prompt": CANARY_TEXT, "max_tokens": 1})
SPEED = Question(COMPLETIONS, CANARY_TEXT, {"prompt": CANARY_TEXT, "max_tokens": SPEED_TOKENS, "ignore_eos": True})
PROBE = Question(
    CHAT, PROBE_TEXT, {"messages": [{"role": "user", "content": PROBE_TEXT}], "seed": 42, "max_tokens": 10}
)


@dataclass(frozen=True, slots=True)
class CanaryExtras:
    """What a model's canary asks beside a line of text, which alone passes where other parts are broken."""

    adapter: str | None = None
    """Asked the same line, by its own name."""
    adapter_fields: Mapping[str, object] = field(default_factory=dict)
    """What a request must have beside that name."""
    image: str | None = None
    """A data URL of an image that is to be described."""
    min_tokens_per_second: float | None = None
    """How fast a longer answer must come, for a model whose draft weights or kernels may be lost."""

    def questions(self) -> tuple[Question, ...]:
        """The further questions; the adapter's carries the adapter's name."""
        asked = []
        if self.adapter is not None:
            asked.append(CANARY.with_fields({"model": self.adapter, **self.adapter_fields}))
        if self.image is not None:
            content = [
                {"type": "text", "text": IMAGE_TEXT},
                {"type": "image_url", "image_url": {"url": self.image}},
            ]
            fields = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
            asked.append(Question(CHAT, IMAGE_TEXT, fields))
        return tuple(asked)


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


def is_refusal(failure: ControlCallFailed) -> bool:
    """Whether an engine does not answer such questions (a reranker, a transcriber), and works."""
    return failure.status is not None and (failure.status < 500 or failure.status == 501)
