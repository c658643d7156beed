"""Routing: what a path means, which paths never reach an engine, and which model a request is for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from llmux.errors import ModelNotFound
from llmux.gateway.body_model import model_in_form, model_in_json, peek_json, replace_model
from llmux.gateway.errors import MalformedRequest, MethodNotAllowed, MissingModel, PathForbidden, UnknownPath
from llmux.gateway.http.bodies import Body
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.options import LocalAnswer, LocalRoutes


class Destination(Enum):
    """What answers a path: an engine, the control plane, or one of llmux's own routes."""

    ENGINE = auto()
    MODELS = auto()
    ONE_MODEL = auto()
    HEALTH = auto()
    READY = auto()
    CONTROL = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """The meaning of a path."""

    destination: Destination
    endpoint: str
    """The label in metrics: a known path, or ``other``."""
    path: bytes
    """The path that the engine gets, without the query."""
    model: str | None = None
    """The model that the path names, if any."""


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
_MAX_CACHED = 1024
_MAX_CACHED_PATH_BYTES = 256
_MAX_MODEL_SEGMENTS = 16


def _decode(raw: bytes) -> str:
    """The path as an engine's router sees it. Refuses every spelling that two programs could interpret differently."""
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
    """A model's name that is the rest of a path; clients may or may not have encoded its slashes."""
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
    """Finds routes, and caches those that do not depend on which models are configured."""

    def __init__(
        self, control_paths: Sequence[str], knows: Callable[[str], bool], models: Callable[[], Sequence[str]]
    ) -> None:
        self._knows = knows
        self._models = models
        self._control_exactly = frozenset(control_paths)
        self._control_trees = tuple(f"{path}/" for path in control_paths if path != "/")
        self._cached: dict[bytes, Route] = {}

    def find(self, path: bytes) -> Route:
        """The route of a path, which comes without its query.

        Raises MalformedRequest, PathForbidden, UnknownPath or ModelNotFound.
        """
        route = self._cached.get(path)
        if route is not None:
            return route
        if path.startswith(_UPSTREAM):
            return self._find_upstream(path)
        route = self._find(path)
        if len(self._cached) < _MAX_CACHED and len(path) <= _MAX_CACHED_PATH_BYTES:
            self._cached[path] = route
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


class EngineCall(NamedTuple):
    """What is to be sent to which model."""

    model: str
    body: Body
    streams: bool
    """Whether the answer is to come as a stream."""


def find_model(head: RequestHead, route: Route, body: bytes) -> EngineCall:
    """The model that a request is for, and the body that its engine gets.

    The header takes precedence over the path, and the path over the body. The body is changed only if it is JSON and
    names another model than header or path. Raises MissingModel, InvalidJson or MalformedRequest.
    """
    if head.model_override is not None:
        try:
            name = head.model_override.decode().strip()
        except UnicodeDecodeError:
            raise MalformedRequest("the model-override header is not UTF-8") from None
        if not name:
            raise MissingModel
    elif route.model is not None:
        name = route.model
    elif head.is_form:
        return EngineCall(model_in_form(body, head.content_type), body, streams=False)
    else:
        name, streams = model_in_json(body)
        return EngineCall(name, body, streams)
    streams = False
    if body and not head.is_form:
        fields = peek_json(body)
        if fields is not None:
            streams = fields.streams
            if fields.model is not None and fields.model != name:
                body = replace_model(body, name)
    return EngineCall(name, body, streams)


def answer_locally(method: bytes, route: Route, routes: LocalRoutes) -> LocalAnswer:
    """The answer for one of llmux's own paths; raises MethodNotAllowed or ModelNotFound."""
    if method not in (b"GET", b"HEAD"):
        raise MethodNotAllowed(method.decode("latin-1"), route.endpoint, ("GET", "HEAD"))
    match route.destination:
        case Destination.HEALTH:
            return routes.health()
        case Destination.READY:
            return routes.ready()
        case Destination.MODELS:
            return routes.models()
        case Destination.ONE_MODEL:
            name = route.model or ""
            answer = routes.model(name) if routes.model is not None else None
            if answer is None:
                raise ModelNotFound(name, ())
            return answer
        case Destination.ENGINE | Destination.CONTROL:
            raise UnknownPath(route.endpoint)
