"""Which paths reach an engine, and which model a path names."""

import pytest

from llmux.errors import ModelNotFound, RequestError
from llmux.gateway.errors import MalformedRequest, PathForbidden, UnknownPath
from llmux.gateway.options import DEFAULT_CONTROL_PATHS
from llmux.gateway.routing import Destination, Router

MODELS = ["m", "org/m", "org/m/x", "Qwen2.5-7B", "ü"]


def router() -> Router:
    return Router(DEFAULT_CONTROL_PATHS, MODELS.__contains__, lambda: MODELS)


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
        (b"/control/../v1/x", MalformedRequest),
        (b"/upstream/m/..%2fsleep", MalformedRequest),
        (b"/upstream/nope/v1/completions", ModelNotFound),
        (b"/upstream/", ModelNotFound),
        (b"/upstream/m/docs", UnknownPath),
        (b"/upstream/m/health", UnknownPath),
        (b"/Sleep", UnknownPath),
        (b"/V1/completions", UnknownPath),
    ],
)
def test_refused_paths(path: bytes, error: type[RequestError]) -> None:
    with pytest.raises(error):
        router().find(path)


def test_the_cache_is_bounded_and_independent_of_the_configured_models() -> None:
    known = ["m"]
    routes = Router((), known.__contains__, lambda: known)
    for number in range(3000):
        routes.find(b"/v1/%d" % number)
    assert len(routes._cached) <= 1024
    assert routes.find(b"/upstream/m/v1/x").model == "m"
    known.clear()
    with pytest.raises(ModelNotFound):
        routes.find(b"/upstream/m/v1/x")
