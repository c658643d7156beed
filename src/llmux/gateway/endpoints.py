"""The inference paths that llmux knows, beside those with a fixed path: with identifiers, further ones, hints."""

from collections.abc import Iterable, Mapping
from typing import Final

from llmux.engines.paths import ANY, COMMON_ENDPOINTS, Endpoint

EVENT_STREAMS: Final = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"))
"""Where ``"stream": true`` asks for server-sent events."""

ANNOUNCED_STREAMS: Final = frozenset(("/v1/responses", "/v1/messages"))
"""Of these, the ones whose first events come before the first token."""

_RESPONSES = "/v1/responses/"
_RESPONSE = Endpoint("/v1/responses/{id}", ("GET", "HEAD", "DELETE"), model_in_body=False, may_wake=False)
_OF_RESPONSE = {
    "cancel": Endpoint("/v1/responses/{id}/cancel", media_types=ANY, model_in_body=False, may_wake=False),
    "input_items": Endpoint("/v1/responses/{id}/input_items", ("GET", "HEAD"), model_in_body=False, may_wake=False),
}

UPSTREAM = b"/upstream/"
"""Stands before the name of a model, which stands before the path that its engine gets."""

UNKNOWN_TREES = ("/v1/", "/v2/", "/inference/", "/cohere/")
"""Where engines may have further paths, which are forwarded to a model that serves already."""

_SUGGESTIONS = (*COMMON_ENDPOINTS, "/v1/responses/ID")
_COMPARED_CHARACTERS = 64
_MIN_LIKENESS = 0.7
_DOUBLED = ("/v1/v1/", "/v1/v2/", "/v2/v1/", "/v2/v2/")


PAGE = Endpoint("a page", ("GET", "HEAD"), model_in_body=False, may_wake=False)
"""Any path of an engine that has pages for people, but those that its table has."""


def with_further(paths: Iterable[str], known: Mapping[str, Endpoint] = COMMON_ENDPOINTS) -> dict[str, Endpoint]:
    """The table with further paths (``inference_paths``), of whose methods and bodies nothing is known."""
    methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return {path: Endpoint(path, methods, ANY) for path in paths} | dict(known)


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
