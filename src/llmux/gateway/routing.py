"""Where a request goes by its path, and what of it must never reach an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote_to_bytes

from llmux.errors import MalformedRequest, ModelNotFound, PathForbidden, UnknownPath


class Destination(Enum):
    """Who answers."""

    ENGINE = auto()
    MODELS = auto()
    ONE_MODEL = auto()
    HEALTH = auto()
    READY = auto()
    CONTROL = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """What a path means."""

    destination: Destination
    endpoint: str
    """A label for metrics: a known path, or ``other``."""
    path: bytes
    """What the engine is asked for, without the query string."""
    model: str | None = None
    """Named by the path."""


_LOCAL = {
    "/v1/models": Destination.MODELS,
    "/models": Destination.MODELS,
    "/health": Destination.HEALTH,
    "/ready": Destination.READY,
}
_INFERENCE = frozenset(
    ("/tokenize", "/detokenize", "/pooling", "/score", "/rerank", "/invocations", "/classify", "/generative_scoring")
)
_INFERENCE_TREES = ("/v1/", "/v2/", "/inference/")
_ENGINE_CONTROL = frozenset(
    """
    sleep wake_up is_sleeping is_paused pause resume collective_rpc server_info abort_request abort_requests
    release_kv_cache_memory weight_info weight_checker get_world_size scale_elastic_ep is_scaling_elastic_ep
    start_profile stop_profile shutdown flush_cache release_memory_occupation resume_memory_occupation
    pause_generation continue_generation kv_event_sources
    """.split()  # noqa: SIM905
)
_ENGINE_CONTROL_PREFIXES = ("reset_", "update_weight", "init_weight", "destroy_weight", "get_weight", "set_internal")
_OPENAI_ENDPOINTS = frozenset(
    """
    /v1/chat/completions /v1/chat/completions/batch /v1/completions /v1/responses /v1/messages
    /v1/messages/count_tokens /v1/embeddings /v1/score /v1/rerank /v2/rerank /v2/embed /v1/audio/transcriptions
    /v1/audio/translations /v1/audio/speech /v1/images/generations
    """.split()  # noqa: SIM905
)
_KNOWN_ENDPOINTS = _OPENAI_ENDPOINTS | _INFERENCE | _LOCAL.keys()
_UPSTREAM = b"/upstream/"
_ONE_MODEL = b"/v1/models/"
_FORBIDDEN_OCTETS = frozenset(b"\\%#")
_MAX_REMEMBERED = 1024
_MAX_MODEL_SEGMENTS = 16


def _decode(raw: bytes) -> str:
    """The path as an engine's router sees it; refuses every spelling that two programs could read differently."""
    decoded = unquote_to_bytes(raw)
    if any(byte <= 32 or byte == 127 or byte in _FORBIDDEN_OCTETS for byte in decoded):
        raise MalformedRequest("the path contains a character that is not allowed in it")
    if decoded.count(b"/") != raw.count(b"/"):
        raise MalformedRequest("the path contains an encoded slash; it is only allowed in a model's name")
    try:
        text = decoded.decode()
    except UnicodeDecodeError:
        raise MalformedRequest("the path is not UTF-8") from None
    segments = text.split("/")[1:]
    if any(segment in (".", "..") for segment in segments) or "" in segments[:-1]:
        raise MalformedRequest("the path contains '//', '/./' or '/../'; write it in its shortest form")
    if raw != decoded and any(segment.startswith(".") for segment in segments):
        raise MalformedRequest("the path contains an encoded dot segment")
    return text


def _decode_name(raw: bytes) -> str:
    """A model's name that is a whole rest of a path, however it is spelt: clients encode its slashes or leave them."""
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise MalformedRequest("the path is not UTF-8") from None


def _engine_route(raw: bytes, model: str | None) -> Route:
    path = _decode(raw)
    first = path.split("/")[1]
    if first in _ENGINE_CONTROL or first.startswith(_ENGINE_CONTROL_PREFIXES):
        raise PathForbidden(path)
    last = path.rstrip("/").rpartition("/")[2]
    if path.startswith(_INFERENCE_TREES):
        if last in _ENGINE_CONTROL or last.startswith(_ENGINE_CONTROL_PREFIXES):
            raise PathForbidden(path)
    elif path not in _INFERENCE:
        raise UnknownPath(path)
    endpoint = path if path in _KNOWN_ENDPOINTS else "other"
    return Route(Destination.ENGINE, endpoint, raw, model)


class Router:
    """Finds routes; remembers those that do not depend on which models are configured."""

    def __init__(
        self, control_paths: Sequence[str], knows: Callable[[str], bool], models: Callable[[], Sequence[str]]
    ) -> None:
        self._knows = knows
        self._models = models
        self._control_exactly = frozenset(control_paths)
        self._control_trees = tuple(f"{path}/" for path in control_paths if path != "/")
        self._remembered: dict[bytes, Route] = {}

    def find(self, path: bytes) -> Route:
        """The route of a path (without query).

        Raises MalformedRequest, PathForbidden, UnknownPath or ModelNotFound.
        """
        route = self._remembered.get(path)
        if route is not None:
            return route
        if path.startswith(_UPSTREAM):
            return self._find_upstream(path)
        route = self._find(path)
        if len(self._remembered) < _MAX_REMEMBERED and len(path) <= 256:
            self._remembered[path] = route
        return route

    def _find(self, raw: bytes) -> Route:
        if not raw.startswith(b"/"):
            raise UnknownPath(raw.decode("latin-1"))
        if raw.startswith(_ONE_MODEL):
            return Route(Destination.ONE_MODEL, "/v1/models/{model}", raw, _decode_name(raw.removeprefix(_ONE_MODEL)))
        path = _decode(raw)
        if path in self._control_exactly or path.startswith(self._control_trees):
            return Route(Destination.CONTROL, "control", raw)
        local = _LOCAL.get(path)
        if local is not None:
            return Route(local, path, raw)
        return _engine_route(raw, None)

    def _find_upstream(self, raw: bytes) -> Route:
        segments = raw.removeprefix(_UPSTREAM).split(b"/")
        names = [unquote_to_bytes(segment).decode("utf-8", "replace") for segment in segments[:_MAX_MODEL_SEGMENTS]]
        for count in range(min(len(names), len(segments) - 1), 0, -1):
            model = "/".join(names[:count])
            if self._knows(model):
                return _engine_route(b"/" + b"/".join(segments[count:]), model)
        name = "/".join(names)
        if self._knows(name):
            raise UnknownPath(raw.decode("latin-1"))
        raise ModelNotFound(name, self._models())
