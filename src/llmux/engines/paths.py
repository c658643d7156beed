"""The inference paths of engines, as tables: what each takes, where it names its model, whether it may wake it.

Whatever an engine is certain to refuse is refused by its table, before a model is woken for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class MediaType(Enum):
    """The kinds of bodies that endpoints take."""

    JSON = "application/json"
    FORM = "multipart/form-data"
    OTHER = "another type"


JSON = frozenset((MediaType.JSON,))
_FORM = frozenset((MediaType.FORM,))
ANY = frozenset(MediaType)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one path of an engine takes."""

    path: str
    methods: tuple[str, ...] = ("POST",)
    media_types: frozenset[MediaType] = JSON
    """Of a POST that has a body."""
    model_in_body: bool = True
    """False: the body, if any, names no model; header, path or query (``?model=NAME``) does."""
    may_wake: bool = True
    """Whether a POST wakes its model; other methods never do. What only a running engine can have, one that was just
    woken has not."""


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

COMMON_ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        *(Endpoint(path) for path in _JSON_PATHS),
        *(Endpoint(path, media_types=_FORM) for path in _FORM_PATHS),
        Endpoint("/v1/images/edits", media_types=_FORM | JSON),
        # An engine's own list, under /upstream/MODEL.
        Endpoint("/v1/models", ("GET", "HEAD"), model_in_body=False, may_wake=False),
    )
}
"""vLLM's, and those of OpenAI's API that other engines with such a front have."""


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What a kind of engine gets of clients' requests, and what it never gets."""

    endpoints: Mapping[str, Endpoint] = field(default_factory=lambda: COMMON_ENDPOINTS)
    """Its inference paths. Empty: nothing is known of them, and it may have those of any kind."""
    never_forwarded: frozenset[str] = frozenset()
    """Names of paths that control the engine or show what others asked: the first segment of a path, or, below the
    usual trees (``/v1/``), the last one."""
    never_forwarded_prefixes: tuple[str, ...] = ()
    """Beginnings of such names."""
    forwards_pages: bool = False
    """Whether it has pages for people: a GET of any other path goes to it while it serves, and wakes nothing."""
    removed_headers: frozenset[str] = frozenset()
    """Header fields, in lower case, that would let a client reach more than its own request."""
    removed_fields: frozenset[str] = frozenset()
    """Fields of JSON bodies, at their top level, that would do so."""
