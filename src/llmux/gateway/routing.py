"""Routing: what a path means, which paths never reach an engine, and which model a request is for."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import islice
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qs, unquote_to_bytes

from llmux.core.names import ModelName, NameKind, Register
from llmux.engines.paths import JSON, Endpoint, MediaType
from llmux.engines.registry import NEVER_FORWARDED, NEVER_FORWARDED_PREFIXES
from llmux.errors import ModelNotFound, ModelNotLoaded, RequestError
from llmux.gateway import endpoints
from llmux.gateway.body_model import JsonBody, add_fields, read_fields, read_json, replace_model
from llmux.gateway.engine_paths import EngineGroup, EnginePaths, EngineRules, merged
from llmux.gateway.errors import (
    MalformedRequest,
    MethodNotAllowed,
    MissingModel,
    PathForbidden,
    UnknownPath,
    UnsupportedMediaType,
)
from llmux.gateway.form import FormBody, read_form
from llmux.gateway.http.bodies import Body
from llmux.gateway.http.media_types import is_plain_json, media_type
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.options import LocalAnswer, LocalRoutes
from llmux.gateway.removed_fields import RemovedFields


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
    """The name of the model in the path, if there is one."""
    rules: Endpoint | None = None
    """What the engine takes there; None if llmux does not know the path, or answers it itself."""
    may_wake: bool = False
    """Whether a POST wakes its model."""
    removed: RemovedFields | None = None
    """The fields of bodies that the engine must not get."""
    variants: "Variants | None" = None
    """None if this route is the same for every model; else it tells what any of their engines takes."""


@dataclass(frozen=True, slots=True)
class Variants:
    """The routes of one path where engines differ."""

    merged: Route
    """What any engine takes, to find out with which model the request is for."""
    own: Sequence[Route | None]
    """The route of each group of models, None for those that do not have the path."""
    paths: EnginePaths

    def of(self, model: str) -> Route:
        """The route of a model; raises UnknownPath if its engine does not have the path."""
        group = self.paths.group_of.get(model)
        route = self.merged if group is None else self.own[group]
        if route is None:
            assert group is not None
            path = self.merged.path.decode("latin-1")
            having = self.paths.models_in(number for number, one in enumerate(self.own) if one is not None)
            raise path_of_others(path, model, self.paths.groups[group].kind, [*islice(having, _MODELS_NAMED)])
        return route


_LOCAL = {
    "/v1/models": Destination.MODELS,
    "/models": Destination.MODELS,
    "/health": Destination.HEALTH,
    "/ready": Destination.READY,
}
_ONE_MODEL = (b"/v1/models/", b"/models/")
_FORBIDDEN_OCTET = re.compile(rb"[\x00-\x20\x7f\\%#]")
_DOT_SEGMENT = re.compile(r"/\.\.?(?:/|$)")
_MAX_PATH_BYTES = 4096
"""Decoding takes a third of a microsecond per escape, and a head may be 64 KiB of them."""
_MAX_MODEL_SEGMENTS = 16
_MAX_QUERY_BYTES = 8192
_MAX_QUERY_FIELDS = 256
_MODELS_NAMED = 5
_NAME_SHOWN = 100
_NO_FIELDS: Final[Mapping[str, object]] = MappingProxyType({})


def _shortest(raw: bytes) -> bytes:
    """The path without empty segments: base URLs are often written with a slash too many."""
    if b"//" not in raw and not raw.endswith(b"/"):
        return raw
    return b"/" + b"/".join(filter(None, raw.split(b"/")))


def _decode(raw: bytes) -> str:
    """The path as an engine's router sees it. Refuses every spelling that two programs could interpret differently."""
    decoded = unquote_to_bytes(raw)
    if _FORBIDDEN_OCTET.search(decoded):
        raise MalformedRequest("the path contains a character that is not allowed in it")
    if decoded.count(b"/") != raw.count(b"/"):
        raise MalformedRequest("the path contains an encoded slash; it is only allowed in a model's name")
    try:
        text = decoded.decode()
    except UnicodeDecodeError:
        raise MalformedRequest("the path is not UTF-8") from None
    if _DOT_SEGMENT.search(text):
        raise MalformedRequest("the path contains '/./' or '/../'; write it in its shortest form")
    if raw != decoded and "/." in text:
        raise MalformedRequest("the path contains an encoded dot segment")
    return text


def _decode_name(raw: bytes) -> str:
    """A model's name that is the rest of a path; clients may or may not have encoded its slashes."""
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise MalformedRequest("the path is not UTF-8") from None


def _refuse_doubled_slashes(raw: bytes) -> None:
    """For paths of power, which have one spelling only."""
    if b"//" in raw:
        raise MalformedRequest("the path contains '//'; write it in its shortest form")


class Router:
    """Finds routes, and caches those that do not depend on which models are configured."""

    def __init__(
        self,
        control_paths: Sequence[str],
        names: Callable[[], Register],
        inference_paths: Sequence[str] = (),
        engines: Mapping[str, EngineRules] = MappingProxyType({}),
    ) -> None:
        """``inference_paths`` are further ones that engines have and a request may wake its model for.

        ``engines`` say what each model's engine takes.
        """
        self._names = names
        self._control_exactly = frozenset(control_paths)
        self._control_trees = tuple(f"{path}/" for path in control_paths if path != "/")
        self._paths = EnginePaths(engines, inference_paths)
        rules = [engine.rules for engine in engines.values()]
        self._never = NEVER_FORWARDED.union(*(own.never_forwarded for own in rules))
        self._never_prefixes = tuple(
            {*NEVER_FORWARDED_PREFIXES, *(prefix for own in rules for prefix in own.never_forwarded_prefixes)}
        )
        self._cacheable = self._paths.known | frozenset(_LOCAL)
        self._cached: dict[bytes, Route] = {}

    def find(self, path: bytes) -> Route:
        """The route of a path, which comes without its query.

        Raises MalformedRequest, PathForbidden, UnknownPath or ModelNotFound.
        """
        route = self._cached.get(path)
        if route is not None:
            return route
        if len(path) > _MAX_PATH_BYTES:
            raise MalformedRequest(f"the path is longer than {_MAX_PATH_BYTES} bytes")
        if not path.startswith(b"/"):
            raise UnknownPath(path.decode("latin-1"))
        shortest = _shortest(path)
        if shortest.startswith(endpoints.UPSTREAM) or path.startswith(endpoints.UPSTREAM):
            return self._find_upstream(path, shortest)
        route = self._find(path, shortest)
        # Of these there are only so many, so that nobody can fill the cache with others.
        if route.endpoint in self._cacheable and b"%" not in path and b"//" not in path:
            self._cached[path] = route
        return route

    def is_control(self, path: bytes) -> bool:
        """Whether a path is the control plane's."""
        try:
            return self.find(path).destination is Destination.CONTROL
        except RequestError:
            return False

    def _find(self, raw: bytes, shortest: bytes) -> Route:
        for prefix in _ONE_MODEL:
            if shortest.startswith(prefix):
                name = _decode_name(shortest.removeprefix(prefix))
                return Route(Destination.ONE_MODEL, "/v1/models/{model}", shortest, name)
        path = _decode(shortest)
        if path in self._control_exactly or path.startswith(self._control_trees):
            _refuse_doubled_slashes(raw)
            return Route(Destination.CONTROL, "control", raw)
        local = _LOCAL.get(path)
        if local is not None:
            return Route(local, path, shortest)
        return self._engine_route(raw, shortest, path, None)

    def _find_upstream(self, raw: bytes, shortest: bytes) -> Route:
        segments = shortest[len(endpoints.UPSTREAM) :].split(b"/")
        parts = [unquote_to_bytes(segment).decode("utf-8", "replace") for segment in segments[:_MAX_MODEL_SEGMENTS]]
        names = self._names()
        for count in range(min(len(parts), len(segments) - 1), 0, -1):
            model = "/".join(parts[:count])
            if model in names:
                rest = b"/" + b"/".join(segments[count:])
                return self._engine_route(raw, rest, _decode(rest), model)
        name = "/".join(parts)
        if name in names:
            if self._paths.has_pages(names[name].model):
                return self._engine_route(raw, b"/", "/", name)
            raise UnknownPath(raw.decode("latin-1"), f"add the engine's path, as /upstream/{name}/v1/chat/completions")
        raise ModelNotFound(name, models_of(names))

    def _engine_route(self, raw: bytes, shortest: bytes, path: str, model: str | None) -> Route:
        if self._is_engine_control(path):
            _refuse_doubled_slashes(raw)
            raise PathForbidden(path)
        own: list[Route | None] = [_route_in(group, shortest, path, model) for group in self._paths.groups]
        if model is not None and self._is_page(model, own):
            page = Route(Destination.ENGINE, "other", shortest, model, endpoints.PAGE)
            # A header may name another model than the path does.
            with_pages = [page if group.forwards_pages else None for group in self._paths.groups]
            return replace(page, variants=Variants(page, with_pages, self._paths))
        having = [route for route in own if route is not None]
        if not having:
            if not endpoints.may_exist(path):
                raise UnknownPath(path, endpoints.hint_for(path))
            groups = self._paths.groups
            having = [Route(Destination.ENGINE, "other", shortest, model, removed=group.removed) for group in groups]
            own = [*having]
        first = having[0]
        if first.removed is None and (len(own) == 1 or all(route == first for route in own)):
            return first
        taken = [route.rules for route in having if route.rules is not None]
        rules = merged(taken) if taken else None
        any_of = replace(first, rules=rules, may_wake=any(route.may_wake for route in having), removed=None)
        return replace(any_of, variants=Variants(any_of, own, self._paths))

    def _is_page(self, model: str, own: Sequence[Route | None]) -> bool:
        """Whether a path is one of a model's engine that its table does not have, and that it has pages for people."""
        key = self._names()[model].model
        return self._paths.has_pages(key) and own[self._paths.group_of[key]] is None

    def _is_engine_control(self, path: str) -> bool:
        """Whether a path controls engines of any kind: which kind a model's is, clients need not know."""
        first, *rest = path.split("/")[1:]
        # Below a tree the name comes second, or last.
        is_in_tree = path.startswith(endpoints.UNKNOWN_TREES) or first == "api"
        names = (first, *rest[:1], *rest[-1:]) if is_in_tree else (first,)
        return any(name in self._never or name.startswith(self._never_prefixes) for name in names)


def _route_in(group: EngineGroup, shortest: bytes, path: str, model: str | None) -> Route | None:
    """The route of a group of models, if their engines have the path."""
    found = group.find(path)
    if found is None:
        return None
    known, rules = found
    label = known if rules.path == known else "other"
    raw = shortest if known == path else b"/v1" + shortest
    return Route(Destination.ENGINE, label, raw, model, rules, rules.may_wake, group.removed)


def request_line(head: RequestHead, route: Route) -> bytes:
    """The request line that the engine gets."""
    return b"%b %b%b HTTP/1.1\r\n" % (head.method, route.path, head.query)


def models_of(names: Register) -> Sequence[str]:
    """The models that a register has names for."""
    return list(dict.fromkeys(name.model for name in names.values()))


def check_request(head: RequestHead, route: Route) -> None:
    """Refuse by its head what an engine is certain to refuse, and spell JSON's type as engines compare it.

    Raises MethodNotAllowed or UnsupportedMediaType.
    """
    rules = route.rules
    if rules is None:
        return
    method = head.method.decode("latin-1")
    if method not in rules.methods:
        raise MethodNotAllowed(method, route.path.decode("latin-1"), rules.methods)
    # A body without a type is judged when it is there: what is wrong with its framing says more.
    if method == "POST" and head.content_type and (head.content_length or head.chunked):
        _check_media_type(head, rules)
        if rules.media_types is JSON and not is_plain_json(head.content_type):
            head.send_as_json()


def _check_media_type(head: RequestHead, rules: Endpoint) -> None:
    if media_type(head.content_type) not in rules.media_types:
        wanted = " or ".join(kind.value for kind in MediaType if kind in rules.media_types)
        raise UnsupportedMediaType(head.content_type.decode("latin-1"), wanted)


def explain(error: RequestError, head: RequestHead, route: Route) -> RequestError:
    """The error as the client is to be told it: of a path that llmux does not know, that is what matters most.

    A GET asks for something that a running engine may have, and there ``model_not_loaded`` is the better answer.
    """
    if isinstance(error, ModelNotLoaded) and route.rules is None and head.method not in (b"GET", b"HEAD"):
        return unknown_path(route)
    return error


def path_of_others(path: str, model: str, kind: str, having: Sequence[str]) -> UnknownPath:
    """The error about a path that only other engines than the model's have."""
    others = " or ".join(f"'{name[:_NAME_SHOWN]}'" for name in having)
    return UnknownPath(
        path, f"The model '{model[:_NAME_SHOWN]}' is run by {kind}, which does not have it; ask {others}."
    )


def unknown_path(route: Route) -> UnknownPath:
    """The error about a path that llmux does not know, for a request that cannot be forwarded all the same."""
    path = route.path.decode("latin-1")
    return UnknownPath(
        path,
        f"{endpoints.hint_for(path)} Paths that llmux does not know are forwarded only to a model that is named and on "
        "the GPU; if the engine has this one, list it under inference_paths.",
    )


class EngineCall:
    """What is to be sent to which model. Neither a tuple nor a dataclass: one is made for each request."""

    __slots__ = ("added_fields", "body", "keep_alive", "model", "streams")

    def __init__(
        self,
        model: str,
        body: Body,
        streams: bool,
        added_fields: Mapping[str, object] = _NO_FIELDS,
        keep_alive: bytes = b"",
    ) -> None:
        self.model = model
        """The model's key."""
        self.body: Body = body
        self.streams = streams
        """Whether the answer is to come as a stream."""
        self.added_fields = added_fields
        """Fields that a JSON body must have for the engine, and ``body`` may not have yet."""
        self.keep_alive = keep_alive
        """How long the model is to stay, as the body says it in JSON; empty if it does not."""

    def with_body(self, body: Body) -> "EngineCall":
        """The same with another body."""
        return EngineCall(self.model, body, self.streams, self.added_fields, self.keep_alive)


def find_model(head: RequestHead, route: Route, body: bytes, names: Register) -> EngineCall:
    """The model that a request is for, and the body that its engine gets.

    The header takes precedence over the path, and the path over the body. The body is changed only if it names the
    model in a way that the engine does not know, or another model than header or path, or has fields that the engine
    must not get. Uses nothing that changes, so that it may run in a thread. Raises RequestError.
    """
    if route.variants is not None:
        return _find_among_variants(head, route.variants, body, names)
    rules = route.rules
    if not head.content_type and body and rules is not None:
        _check_media_type(head, rules)
    if head.model_override is not None or route.model is not None or rules is None or not rules.model_in_body:
        return _find_by_more_than_the_body(head, route, body, names)
    if not body:
        name = _model_in_query(head)
        if head.is_post or name is None:
            raise MissingModel
        return EngineCall(_known(name, names).model, body, streams=False)
    if head.is_form:
        form = read_form(body, head.content_type)
        asked = _known(form.model, names)
        if asked.served != form.model:
            body = form.with_model(asked.served)
        return EngineCall(asked.model, body, form.streams)
    asked_for, body, streams, keep_alive = find_in_json(body, names)
    return EngineCall(asked_for.model, body, streams, asked_for.added_fields, keep_alive)


def is_in_json_alone(head: RequestHead, route: Route) -> bool:
    """Whether nothing but a JSON body, if there is a body, names the model: ``find_in_json`` is then enough.

    This depends on head and route only: it holds for every request whose head repeats this one.
    """
    rules = route.rules
    if route.variants is not None or route.model is not None or rules is None or not rules.model_in_body:
        return False
    return head.model_override is None and head.content_type != b"" and not head.is_form


def find_in_json(body: bytes, names: Register) -> tuple[ModelName, bytes, bool, bytes]:
    """Find the model that a JSON body names.

    Returns it with ``body``, ``streams`` and ``keep_alive`` of an ``EngineCall``, which most requests can do without.
    Raises RequestError or TooLong.
    """
    model, streams, body, keep_alive = read_fields(body)
    asked_for = names.get(model) if model else None
    if asked_for is None:
        asked_for = _known(model, names)
    if asked_for.served != model:
        body = replace_model(body, asked_for.served)
    return asked_for, body, streams, keep_alive


def _find_among_variants(head: RequestHead, variants: Variants, body: bytes, names: Register) -> EngineCall:
    """Find the model by what any engine takes, and then refuse what its own does not take."""
    call = find_model(head, variants.merged, body, names)
    own = variants.of(call.model)
    if own.rules != variants.merged.rules:
        check_request(head, own)
        call = find_model(head, own, body, names)
    if own.removed is None or head.is_form:
        return call
    edited = own.removed.without(bytes(call.body))
    # Only what clients' bodies cannot have any more is added, so that an engine finds it once.
    return call.with_body(add_fields(edited, call.added_fields) if call.added_fields else edited)


def _find_by_more_than_the_body(head: RequestHead, route: Route, body: bytes, names: Register) -> EngineCall:
    rules = route.rules
    name = _model_in_header(head) or route.model or _model_in_query(head)
    is_strict = rules is not None and rules.model_in_body and MediaType.OTHER not in rules.media_types
    read = _read(head, body) if is_strict else _peek(head, body)
    if rules is None and name not in names:
        name = name or (read.model if read is not None else None)
        if name not in names:
            raise unknown_path(route)
    if not name:
        raise MissingModel("put ?model=MODEL behind the path, send a model-override header, or use /upstream/MODEL/...")
    asked_for = _known(name, names)
    if read is None:
        return EngineCall(asked_for.model, body, streams=False)
    meant = _meant(read.model, asked_for, names)
    # A body without a name may stay so, unless the engine would then answer without the adapter.
    is_right = meant.served == read.model or (read.model is None and meant.kind is not NameKind.ADAPTER)
    text = read.text if is_right else read.with_model(meant.served)
    keep_alive = read.keep_alive if isinstance(read, JsonBody) else b""
    return EngineCall(asked_for.model, text, read.streams, meant.added_fields, keep_alive)


def _meant(in_body: str | None, asked_for: ModelName, names: Register) -> ModelName:
    """What the engine is to answer with.

    Header or path choose the engine, and the body may choose among what that one serves, unless they name an adapter.
    """
    own = names.get(in_body) if in_body is not None else None
    if own is not None and own.model == asked_for.model and asked_for.kind is not NameKind.ADAPTER:
        return own
    return asked_for


def _known(name: str | None, names: Register) -> ModelName:
    if not name:
        raise MissingModel
    found = names.get(name)
    if found is None:
        raise ModelNotFound(name, models_of(names))
    return found


def _model_in_header(head: RequestHead) -> str | None:
    if head.model_override is None:
        return None
    try:
        name = head.model_override.decode().strip()
    except UnicodeDecodeError:
        raise MalformedRequest("the model-override header is not UTF-8") from None
    if not name:
        raise MissingModel
    return name


def _model_in_query(head: RequestHead) -> str | None:
    if len(head.query) > _MAX_QUERY_BYTES:
        raise MalformedRequest(f"the model is looked for in queries of at most {_MAX_QUERY_BYTES} bytes")
    try:
        values = parse_qs(head.query[1:].decode(), max_num_fields=_MAX_QUERY_FIELDS).get("model")
    except ValueError:
        raise MalformedRequest("the query is not UTF-8, or has too many fields") from None
    return values[-1] if values else None


def _read(head: RequestHead, body: bytes) -> JsonBody | FormBody:
    return read_form(body, head.content_type) if head.is_form else read_json(body)


def _peek(head: RequestHead, body: bytes) -> JsonBody | FormBody | None:
    """Read a body that may be anything."""
    try:
        return _read(head, body) if body else None
    except MalformedRequest:
        return None


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
