"""From exceptions to the answers that clients get."""

import json

import pytest

from llmux.errors import (
    EngineDied,
    EngineUnavailable,
    FailureReason,
    ModelNotAllowed,
    ModelNotFound,
    ModelNotLoaded,
    Overloaded,
    QueueFull,
    QueueTimeout,
    RequestError,
    ShuttingDown,
    StartProgress,
)
from llmux.gateway.answers import SHAPES, error_body, error_event, error_headers, shape_of
from llmux.gateway.errors import InvalidApiKey, MethodNotAllowed, MissingModel, PathForbidden, RequestTooLarge


def every_kind() -> list[type[RequestError]]:
    found: list[type[RequestError]] = []
    unseen = [RequestError]
    while unseen:
        children = unseen.pop().__subclasses__()
        found += children
        unseen += children
    return [kind for kind in found if kind.__module__.startswith("llmux.")]


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_every_kind_of_request_error_has_its_own_shape(kind: type[RequestError]) -> None:
    assert kind in SHAPES


def test_each_code_has_one_status() -> None:
    statuses: dict[str, int] = {}
    for shape in SHAPES.values():
        assert statuses.setdefault(shape.code, shape.status) == shape.status
        assert 400 <= shape.status < 600


def test_body_is_openais_envelope() -> None:
    error = json.loads(error_body(ModelNotFound('x"y', ["a", "b"])))
    assert error == {
        "error": {
            "message": "the model 'x\"y' does not exist; configured models: a, b",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModelNotFound("x", ()), "the model 'x' does not exist; GET /v1/models lists those that do"),
        (
            ModelNotAllowed("b", "a"),
            "llmux is in manual mode: the model 'b' was requested, the active model is 'a'; "
            "use /control/switch or /control/unpin",
        ),
        (
            ModelNotAllowed("b", "a", stays=True),
            "the model 'b' cannot be served beside 'a', which stays on the GPUs: they do not fit together, or their "
            "group is exclusive; use /control/sleep or /control/unpin",
        ),
    ],
)
def test_what_the_client_can_do_is_added_to_the_schedulers_errors(error: RequestError, message: str) -> None:
    assert json.loads(error_body(error))["error"]["message"] == message


def test_error_event_is_one_line_between_blank_lines() -> None:
    event = error_event(QueueTimeout("a\nb", 1.0))
    assert event.startswith(b"\n\ndata: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 4


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MissingModel(), "invalid_request_error"),
        (InvalidApiKey(), "authentication_error"),
        (PathForbidden("/sleep"), "permission_error"),
        (ModelNotFound("x", ()), "not_found_error"),
        (MethodNotAllowed("GET", "/v1/messages", ("POST",)), "invalid_request_error"),
        (RequestTooLarge(1), "request_too_large"),
        (QueueFull("10000 requests"), "rate_limit_error"),
        (EngineDied("m"), "api_error"),
        (ShuttingDown(), "overloaded_error"),
        (EngineUnavailable("m", FailureReason("x"), 2.0), "overloaded_error"),
        (QueueTimeout("m", 1.0), "timeout_error"),
        (RequestError("unforeseen"), "api_error"),
    ],
)
def test_anthropics_clients_get_their_envelope(error: RequestError, kind: str) -> None:
    for path in (b"/v1/messages", b"/v1//messages/", b"/messages/count_tokens", b"/upstream/org/m/messages"):
        body = json.loads(error_body(error, path, b"req-1"))
        message = body["error"].pop("message")
        assert message.startswith(str(error))
        assert body == {"type": "error", "error": {"type": kind}, "request_id": "req-1"}
        event = error_event(error, path, b"req-1")
        assert event.startswith(b"\n\nevent: error\ndata: {")
        assert event.endswith(b"}\n\n")
        assert json.loads(event.partition(b"data: ")[2])["type"] == "error"


@pytest.mark.parametrize(
    "path", [b"", b"/", b"/v1/chat/completions", b"/v1/threads/t/messages", b"/v1/messages/x", b"*"]
)
def test_all_others_get_openais(path: bytes) -> None:
    assert set(json.loads(error_body(MissingModel(), path))["error"]) == {"message", "type", "param", "code"}


def with_forecast(error: QueueFull | QueueTimeout, seconds: float) -> RequestError:
    error.forecast_seconds = seconds
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EngineUnavailable("m", FailureReason("x"), 2.1), b"retry-after: 3\r\n"),
        (EngineUnavailable("m", FailureReason("x"), 0.0), b"retry-after: 1\r\n"),
        (QueueTimeout("m", 300.0, StartProgress(300.0, left_seconds=47.5)), b"retry-after: 48\r\n"),
        (QueueTimeout("m", 300.0, StartProgress(300.0)), b"retry-after: 10\r\n"),
        (ModelNotLoaded("m", StartProgress(1.0, left_seconds=0.1)), b"retry-after: 1\r\n"),
        (Overloaded("m", 140.2, 60.0, batch_waits=True), b"retry-after: 81\r\n"),
        (QueueFull("10000 requests"), b"retry-after: 5\r\n"),
        (with_forecast(QueueFull("10000 requests"), 41.2), b"retry-after: 42\r\n"),
        (with_forecast(QueueTimeout("m", 300.0), 0.0), b"retry-after: 1\r\n"),
        (with_forecast(QueueTimeout("m", 300.0, StartProgress(300.0, 47.5)), 99.0), b"retry-after: 48\r\n"),
        (InvalidApiKey(), b"www-authenticate: "),
        (MethodNotAllowed("POST", "/health", ("GET", "HEAD")), b"allow: GET, HEAD\r\n"),
    ],
)
def test_headers(error: RequestError, line: bytes) -> None:
    assert error_headers(error).startswith(b"x-llmux-error: 1\r\n")
    assert line in error_headers(error)


def test_no_retry_after_where_a_retry_cannot_help() -> None:
    assert b"retry-after" not in error_headers(ModelNotFound("x", []))
    assert b"retry-after" not in error_headers(ModelNotLoaded("x"))


def test_unmapped_error_is_an_internal_error() -> None:
    assert shape_of(RequestError("?")).status == 500
