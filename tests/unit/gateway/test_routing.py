"""Which paths reach an engine, and which model a path names."""

import pytest

from llmux.core.names import own_names
from llmux.engines.paths import COMMON_ENDPOINTS, Endpoint, RequestRules
from llmux.errors import ModelNotFound, RequestError
from llmux.gateway.engine_paths import EngineRules
from llmux.gateway.errors import (
    MalformedRequest,
    MethodNotAllowed,
    PathForbidden,
    UnknownPath,
    UnsupportedMediaType,
)
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.options import DEFAULT_CONTROL_PATHS
from llmux.gateway.routing import Destination, Router, check_request

NAMES = own_names(["m", "org/m", "org/m/x", "Qwen2.5-7B", "ü"])


def router() -> Router:
    return Router(DEFAULT_CONTROL_PATHS, lambda: NAMES, ["/generate", "/v1/sleep"])


@pytest.mark.parametrize(
    ("path", "model", "forwarded"),
    [
        (b"/upstream/m/v1/completions", "m", b"/v1/completions"),
        (b"/upstream/org/m/v1/completions", "org/m", b"/v1/completions"),
        (b"/upstream/org%2Fm/v1/completions", "org/m", b"/v1/completions"),
        (b"/upstream/org/m/x/v1/completions", "org/m/x", b"/v1/completions"),
        (b"/upstream/Qwen2%2e5-7B/tokenize", "Qwen2.5-7B", b"/tokenize"),
        (b"/upstream/%C3%BC/tokenize", "ü", b"/tokenize"),
    ],
)
def test_model_in_the_path(path: bytes, model: str, forwarded: bytes) -> None:
    route = router().find(path)
    assert (route.destination, route.model, route.path) == (Destination.ENGINE, model, forwarded)


@pytest.mark.parametrize(
    ("path", "destination", "endpoint"),
    [
        (b"/v1/chat/completions", Destination.ENGINE, "/v1/chat/completions"),
        (b"/v1/whatever/123", Destination.ENGINE, "other"),
        (b"/v1/responses/resp_1/cancel", Destination.ENGINE, "other"),
        (b"/v1/models", Destination.MODELS, "/v1/models"),
        (b"/v1/models/org/m", Destination.ONE_MODEL, "/v1/models/{model}"),
        (b"/health", Destination.HEALTH, "/health"),
        (b"/ready", Destination.READY, "/ready"),
        (b"/", Destination.CONTROL, "control"),
        (b"/control/models/a/story", Destination.CONTROL, "control"),
        (b"/metrics", Destination.CONTROL, "control"),
    ],
)
def test_destinations(path: bytes, destination: Destination, endpoint: str) -> None:
    routes = router()
    for _ in range(2):
        route = routes.find(path)
        assert (route.destination, route.endpoint) == (destination, endpoint)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (b"/v1/models/org/m", "org/m"),
        (b"/v1/models/org%2Fm", "org/m"),
        (b"/v1/models/org%2fm%2Fx", "org/m/x"),
        (b"/v1/models/with%20space%20%26%20%252F", "with space & %2F"),
        (b"/v1/models/%C3%BC", "ü"),
        (b"/v1/models/..%2f..%2fsleep", "../../sleep"),
    ],
)
def test_a_models_name_may_be_percent_encoded(path: bytes, model: str) -> None:
    route = router().find(path)
    assert (route.destination, route.model) == (Destination.ONE_MODEL, model)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"/sleep", PathForbidden),
        (b"/sleep/", PathForbidden),
        (b"/upstream/org/m/wake_up", PathForbidden),
        (b"/upstream/org/m/%77ake_up", PathForbidden),
        (b"/upstream/m/reset_mm_cache", PathForbidden),
        (b"/inference/v1/sleep", PathForbidden),
        (b"/v1/%2E%2E/x", MalformedRequest),
        (b"/v1/%2Ehidden/x", MalformedRequest),
        (b"/v1/a%00b", MalformedRequest),
        (b"/v1/a%0d%0ab", MalformedRequest),
        (b"/v1/a%20b", MalformedRequest),
        (b"/v1/%ff", MalformedRequest),
        (b"/v1/models/%ff", MalformedRequest),
        (b"/v1/a#b", MalformedRequest),
        (b"/v1/" + b"%41" * 20_000, MalformedRequest),
        (b"/upstream" + b"/m" * 20_000, MalformedRequest),
        (b"/control/../v1/x", MalformedRequest),
        (b"/upstream/m/..%2fsleep", MalformedRequest),
        (b"/upstream/nope/v1/completions", ModelNotFound),
        (b"/upstream/", ModelNotFound),
        (b"/upstream/m/docs", UnknownPath),
        (b"/upstream/m/health", UnknownPath),
        (b"/v1/load_lora_adapter", PathForbidden),
        (b"/upstream/m/v1/unload_lora_adapter/", PathForbidden),
        (b"/finish_weight_update", PathForbidden),
        (b"/Sleep", UnknownPath),
        (b"/V1/completions", UnknownPath),
    ],
)
def test_refused_paths(path: bytes, error: type[RequestError]) -> None:
    with pytest.raises(error):
        router().find(path)


@pytest.mark.parametrize("path", [path for path in COMMON_ENDPOINTS if path != "/v1/models"])
@pytest.mark.parametrize("upstream", ["", "/upstream/org/m"])
def test_every_spelling_of_a_base_url_leads_to_the_same_path(path: str, upstream: str) -> None:
    spellings = {path, f"{path}/", f"{path}//", f"/{path}", path.replace("/v1/", "/v1//")}
    spellings |= {f"{upstream}/{one.removeprefix('/')}" for one in spellings} | {upstream + one for one in spellings}
    if path.removeprefix("/v1") not in COMMON_ENDPOINTS:
        spellings |= {upstream + path.removeprefix("/v1"), upstream + path.removeprefix("/v1") + "/"}
    routes = router()
    for spelling in spellings:
        for _ in range(2):
            route = routes.find(spelling.encode())
            assert (route.destination, route.endpoint, route.path) == (Destination.ENGINE, path, path.encode()), (
                spelling
            )


@pytest.mark.parametrize(
    ("path", "destination"),
    [
        ("/v1/models/", Destination.MODELS),
        ("//v1/models", Destination.MODELS),
        ("/models/", Destination.MODELS),
        ("/health/", Destination.HEALTH),
        ("/v1/models/m/", Destination.ONE_MODEL),
        ("/models/m", Destination.ONE_MODEL),
        ("/v1//models/m", Destination.ONE_MODEL),
    ],
)
def test_slashes_around_llmuxs_own_paths(path: str, destination: Destination) -> None:
    route = router().find(path.encode())
    assert (route.destination, route.model) == (destination, "m" if destination is Destination.ONE_MODEL else None)


@pytest.mark.parametrize(
    ("path", "forwarded"),
    [
        ("/responses/resp_1", "/v1/responses/resp_1"),
        ("/v1/responses/resp_1/", "/v1/responses/resp_1"),
        ("/upstream/m/responses/r/cancel", "/v1/responses/r/cancel"),
        ("/upstream/m/models", "/v1/models"),
        ("/upstream/m/v1/models/", "/v1/models"),
        ("/generate/", "/generate"),
        ("/v1/unknown//x/", "/v1/unknown/x"),
    ],
)
def test_the_engine_gets_the_clean_path(path: str, forwarded: str) -> None:
    assert router().find(path.encode()).path == forwarded.encode()


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/v1/chat/completions", "twice"),
        ("/upstream/m/v1/v1/models", "twice"),
        ("/v2/v1/rerank", "twice"),
        ("/api/v1/chat/completions", "/v1/chat/completions?"),
        ("/api/chat", "/v1/chat/completions"),
        ("/upstream/m", "/upstream/m/v1/chat/completions"),
        ("/" + "x" * 3_000, "/v1/chat/completions"),
    ],
)
def test_an_unknown_path_says_what_may_have_been_meant(path: str, hint: str) -> None:
    for spelling in (path, f"{path}/"):
        with pytest.raises(UnknownPath) as raised:
            router().find(spelling.encode())
        assert hint in str(raised.value)
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "path", ["//control/status", "/control//status", "//", "//metrics", "/v1//sleep", "/metrics//"]
)
def test_paths_of_power_have_one_spelling(path: str) -> None:
    with pytest.raises(MalformedRequest):
        router().find(path.encode())


def check(method: str, path: str, *fields: str) -> None:
    head = RequestHead()
    head.parse("\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode())
    check_request(head, router().find(head.path))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/upstream/m/rerank/", "/chat/completions", "/v1/responses/r/cancel"]
)
def test_other_methods_than_post_are_refused_where_engines_refuse_them(method: str, path: str) -> None:
    with pytest.raises(MethodNotAllowed) as raised:
        check(method, path)
    assert raised.value.allowed == ("POST",)


@pytest.mark.parametrize(
    ("path", "content_type", "is_taken"),
    [
        ("/v1/chat/completions", "application/json", True),
        ("/v1/chat/completions", "Application/JSON ; charset=utf-8", True),
        ("/v1/chat/completions", "application/problem+json", True),
        ("/v1/chat/completions", "text/plain", False),
        ("/v1/chat/completions", "text/json", False),
        ("/v1/chat/completions", "application/jsonl", False),
        ("/v1/chat/completions", "application/x-www-form-urlencoded", False),
        ("/v1/chat/completions", "multipart/form-data; boundary=B", False),
        ("/v1/chat/completions", None, True),
        ("/upstream/m/v1/audio/transcriptions", "multipart/form-data; boundary=B", True),
        ("/v1/audio/transcriptions", "application/json", False),
        ("/v1/images/edits", "multipart/form-data; boundary=B", True),
        ("/v1/images/edits", "application/json", True),
        ("/v1/images/edits", "text/plain", False),
        ("/v1/responses/r/cancel", None, True),
        ("/generate", "text/plain", True),
        ("/v1/unknown", None, True),
    ],
)
def test_the_type_of_a_body_is_checked(path: str, content_type: str | None, is_taken: bool) -> None:
    kind = [] if content_type is None else [f"Content-Type: {content_type}"]
    for framing in ("Content-Length: 5", "Transfer-Encoding: chunked"):
        if is_taken:
            check("POST", path, framing, *kind)
        else:
            with pytest.raises(UnsupportedMediaType):
                check("POST", path, framing, *kind)
    check("POST", path, *kind)
    check("POST", path, "Content-Length: 0", *kind)


@pytest.mark.parametrize(
    ("path", "may_wake"),
    [
        ("/v1/chat/completions", True),
        ("/upstream/m/tokenize", True),
        ("/generate", True),
        ("/v1/responses/r/cancel", False),
        ("/v1/unknown", False),
        ("/upstream/m/v1/models", False),
    ],
)
def test_what_may_wake_a_model(path: str, may_wake: bool) -> None:
    assert router().find(path.encode()).may_wake is may_wake


def test_the_cache_holds_known_paths_only_and_is_independent_of_the_configured_models() -> None:
    names = dict(own_names(["m"]))
    routes = Router((), lambda: names)
    for path in COMMON_ENDPOINTS:
        for spelling in (
            path,
            path + "/",
            path + "//",
            path.replace("e", "%65"),
            f"/inference{path}",
            f"/v1/models/{path}",
        ):
            routes.find(spelling.encode())
    for path in [*routes._cached]:
        assert path.rstrip(b"/").decode() in COMMON_ENDPOINTS
    assert routes.find(b"/upstream/m/v1/x").model == "m"
    names.clear()
    with pytest.raises(ModelNotFound):
        routes.find(b"/upstream/m/v1/x")


PAINTER = RequestRules(
    endpoints={"/prompt": Endpoint("/prompt", model_in_body=False), "/api/draw": Endpoint("/api/draw")},
    never_forwarded=frozenset(("free",)),
    forwards_pages=True,
)


@pytest.fixture
def painting() -> Router:
    names = own_names(["chat", "org/paint"])
    return Router(
        ("/control", "/"),
        lambda: names,
        (),
        {"org/paint": EngineRules("painter", PAINTER), "chat": EngineRules("usual", RequestRules())},
    )


def test_paths_of_one_kind(painting: Router) -> None:
    assert painting.find(b"/prompt").endpoint == "/prompt"
    assert painting.find(b"/prompt").may_wake
    own = painting.find(b"/upstream/org/paint/prompt")
    assert (own.path, own.may_wake) == (b"/prompt", True)
    assert painting.find(b"/v1/chat/completions").may_wake, "the usual paths are there all the same"
    variants = painting.find(b"/upstream/chat/prompt").variants
    assert variants is not None
    with pytest.raises(UnknownPath):
        variants.of("chat")
    for foreign in (b"/upstream/chat/assets/x.js", b"/assets/x.js"):
        with pytest.raises(UnknownPath):
            painting.find(foreign)


@pytest.mark.parametrize(
    ("path", "sent"),
    [(b"", b"/"), (b"/", b"/"), (b"/assets/x.js", b"/assets/x.js"), (b"/v1/chat/completions", b"/v1/chat/completions")],
)
def test_pages_of_an_engine_wake_nothing(painting: Router, path: bytes, sent: bytes) -> None:
    route = painting.find(b"/upstream/org/paint" + path)
    assert (route.path, route.may_wake, route.endpoint) == (sent, False, "other")
    assert route.rules is not None and route.rules.methods == ("GET", "HEAD")


@pytest.mark.parametrize("path", [b"/free", b"/upstream/org/paint/free", b"/upstream/org/paint/api/free"])
def test_a_kind_s_control_paths_are_forwarded_to_no_engine(painting: Router, path: bytes) -> None:
    with pytest.raises(PathForbidden):
        painting.find(path)
