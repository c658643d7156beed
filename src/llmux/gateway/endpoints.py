"""The inference paths that llmux knows, as a table: what each takes, where it names its model, whether it may wake it.

They are vLLM's, and those of OpenAI's API that other engines with vLLM's front have. Whatever an engine is certain to
refuse is refused by this table, before a model is woken for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from llmux.gateway.http.media_types import MediaType

JSON = frozenset((MediaType.JSON,))
_FORM = frozenset((MediaType.FORM,))
_ANY = frozenset(MediaType)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one path of an engine takes."""

    path: str
    methods: tuple[str, ...] = ("POST",)
    media_types: frozenset[MediaType] = JSON
    """Of a POST that has a body."""
    model_in_body: bool = True
    """False: the body, if any, names no model; header, path or query does."""
    may_wake: bool = True
    """Whether a POST wakes its model. What only a running engine can have, one that was just woken has not."""


_JSON_PATHS = """
    /v1/chat/completions /v1/chat/completions/batch /v1/chat/completions/render /v1/chat/completions/derender
    /v1/completions /v1/completions/render /v1/completions/derender
    /v1/responses /v1/responses/render
    /v1/messages /v1/messages/count_tokens /v1/messages/render
    /v1/embeddings /v1/score /v1/rerank /v2/rerank /v2/embed /v1/systemone
    /v1/audio/speech /v1/images/generations
    /cohere/v2/chat /cohere/v2/chat/render /inference/v1/generate
    /tokenize /detokenize /pooling /score /rerank /invocations /classify /generative_scoring
""".split()  # noqa: SIM905
_FORM_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/variations")

ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        *(Endpoint(path) for path in _JSON_PATHS),
        *(Endpoint(path, media_types=_FORM) for path in _FORM_PATHS),
        Endpoint("/v1/images/edits", media_types=_FORM | JSON),
        # An engine's own list, under /upstream/MODEL.
        Endpoint("/v1/models", ("GET", "HEAD"), model_in_body=False, may_wake=False),
    )
}
"""The endpoints with a fixed path."""

EVENT_STREAMS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"))
"""Where ``"stream": true`` asks for server-sent events."""

ANNOUNCED_STREAMS = frozenset(("/v1/responses", "/v1/messages"))
"""Of these, the ones whose first events come before the first token."""

_RESPONSES = "/v1/responses/"
_RESPONSE = Endpoint("/v1/responses/{id}", ("GET", "HEAD", "DELETE"), model_in_body=False, may_wake=False)
_OF_RESPONSE = {
    "cancel": Endpoint("/v1/responses/{id}/cancel", media_types=_ANY, model_in_body=False, may_wake=False),
    "input_items": Endpoint("/v1/responses/{id}/input_items", ("GET", "HEAD"), model_in_body=False, may_wake=False),
}

UPSTREAM = b"/upstream/"
"""Stands before the name of a model, which stands before the path that its engine gets."""

UNKNOWN_TREES = ("/v1/", "/v2/", "/inference/", "/cohere/")
"""Where engines may have further paths, which are forwarded to a model that serves already."""

_SUGGESTIONS = (*ENDPOINTS, "/v1/responses/ID")
_COMPARED_CHARACTERS = 64
_MIN_LIKENESS = 0.7
_DOUBLED = ("/v1/v1/", "/v1/v2/", "/v2/v1/", "/v2/v2/")


def with_further(paths: Iterable[str]) -> dict[str, Endpoint]:
    """The table with further paths (``inference_paths``), of whose methods and bodies nothing is known."""
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return {path: Endpoint(path, methods, _ANY) for path in paths} | ENDPOINTS


def with_identifier(path: str) -> Endpoint | None:
    """The endpoint of a path that contains an identifier of a response."""
    if not path.startswith(_RESPONSES):
        return None
    identifier, slash, rest = path.removeprefix(_RESPONSES).partition("/")
    if not slash:
        return _RESPONSE if identifier else None
    return _OF_RESPONSE.get(rest)


def may_exist(path: str) -> bool:
    """Whether an engine may have a path that is not in the table."""
    return path.startswith(UNKNOWN_TREES) and not path.startswith(_DOUBLED)


def is_anthropic(path: bytes) -> bool:
    """Whether a path, as a client wrote it, is one of Anthropic's API, whose errors have another shape.

    By the path alone, since errors come from requests that have no route, too.
    """
    if b"messages" not in path:
        return False
    segments = [segment for segment in path.split(b"/") if segment]
    if segments[-1] in (b"count_tokens", b"render"):
        segments.pop()
    match segments:
        case [b"messages"] | [*_, b"v1", b"messages"] | [b"upstream", _, *_, b"messages"]:
            return True
        case _:
            return False


def hint_for(path: str) -> str:
    """What the client of an unknown path may have meant."""
    if path.startswith(_DOUBLED):
        return "The version is there twice: the base URL ends in /v1, and the client adds one."
    likeness, near = max((_likeness(path[:_COMPARED_CHARACTERS], known), known) for known in _SUGGESTIONS)
    if likeness >= _MIN_LIKENESS:
        return f"Did you mean {near}?"
    return "Inference is under /v1, as /v1/chat/completions, or under /upstream/MODEL."


def _likeness(path: str, known: str) -> float:
    """How much of the longer path stands in both, at the beginning or at the end. A tenth of what difflib takes."""
    shorter, longer = sorted((len(path), len(known)))
    prefix = 0
    while prefix < shorter and path[prefix] == known[prefix]:
        prefix += 1
    suffix = 0
    while suffix < shorter - prefix and path[-1 - suffix] == known[-1 - suffix]:
        suffix += 1
    return (prefix + suffix) / longer
