"""llmux's own answers as bytes: errors, as status, headers and OpenAI's envelope, and the paths it serves itself."""

import math
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from llmux.errors import (
    EngineDied,
    EngineError,
    EngineUnavailable,
    Evicted,
    ModelNotAllowed,
    ModelNotFound,
    ModelNotLoaded,
    QueueFull,
    QueueTimeout,
    RequestError,
    ShuttingDown,
    StartProgress,
)
from llmux.gateway.errors import (
    BadGateway,
    HeadTooLarge,
    InvalidApiKey,
    InvalidJson,
    MalformedRequest,
    MethodNotAllowed,
    MissingModel,
    PathForbidden,
    RequestStalled,
    RequestTooLarge,
    UnknownPath,
    UpgradeRefused,
)
from llmux.gateway.options import LocalAnswer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """The answer to one kind of error."""

    status: HTTPStatus
    type: str
    code: str
    param: str | None = None
    retry_after_seconds: int | None = None


_START_RETRY_SECONDS = 10
"""For a model that is starting, where nothing tells how long that takes."""
_INVALID = "invalid_request_error"
_SERVER = "server_error"

SHAPES: dict[type[RequestError], ErrorShape] = {
    MalformedRequest: ErrorShape(HTTPStatus.BAD_REQUEST, _INVALID, "malformed_request"),
    InvalidJson: ErrorShape(HTTPStatus.BAD_REQUEST, _INVALID, "invalid_json"),
    MissingModel: ErrorShape(HTTPStatus.BAD_REQUEST, _INVALID, "missing_model", param="model"),
    InvalidApiKey: ErrorShape(HTTPStatus.UNAUTHORIZED, "authentication_error", "invalid_api_key"),
    PathForbidden: ErrorShape(HTTPStatus.FORBIDDEN, _INVALID, "path_forbidden"),
    ModelNotFound: ErrorShape(HTTPStatus.NOT_FOUND, _INVALID, "model_not_found", param="model"),
    UnknownPath: ErrorShape(HTTPStatus.NOT_FOUND, _INVALID, "unknown_path"),
    MethodNotAllowed: ErrorShape(HTTPStatus.METHOD_NOT_ALLOWED, _INVALID, "method_not_allowed"),
    RequestStalled: ErrorShape(HTTPStatus.REQUEST_TIMEOUT, _INVALID, "request_timeout"),
    RequestTooLarge: ErrorShape(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _INVALID, "request_too_large"),
    HeadTooLarge: ErrorShape(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _INVALID, "headers_too_large"),
    QueueFull: ErrorShape(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", retry_after_seconds=5),
    UpgradeRefused: ErrorShape(HTTPStatus.NOT_IMPLEMENTED, _INVALID, "upgrade_not_supported"),
    EngineError: ErrorShape(HTTPStatus.BAD_GATEWAY, _SERVER, "bad_gateway"),
    BadGateway: ErrorShape(HTTPStatus.BAD_GATEWAY, _SERVER, "bad_gateway"),
    EngineDied: ErrorShape(HTTPStatus.BAD_GATEWAY, _SERVER, "engine_died"),
    EngineUnavailable: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "model_unavailable", retry_after_seconds=5),
    ModelNotAllowed: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "model_not_allowed", retry_after_seconds=10),
    ModelNotLoaded: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "model_not_loaded"),
    ShuttingDown: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "shutting_down", retry_after_seconds=5),
    Evicted: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "evicted", retry_after_seconds=1),
    QueueTimeout: ErrorShape(HTTPStatus.GATEWAY_TIMEOUT, _SERVER, "queue_timeout"),
}
"""Every kind of RequestError: a test fails if one is missing."""

MESSAGES_ENDPOINT = "/v1/messages"
"""Anthropic's, whose clients expect events with names and another shape of errors."""

_MESSAGES_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}
"""Anthropic's word for a kind of error, by its status; ``api_error`` for all others."""

_UNMAPPED = ErrorShape(HTTPStatus.INTERNAL_SERVER_ERROR, _SERVER, "internal_error")


def shape_of(error: RequestError) -> ErrorShape:
    """The shape of the error's nearest ancestor in the table."""
    for ancestor in type(error).__mro__:
        shape = SHAPES.get(ancestor)
        if shape is not None:
            return shape
    return _UNMAPPED


def _message(error: RequestError) -> str:
    """The error's message and, for errors that come from where HTTP is unknown, what the client can do about it."""
    match error:
        case ModelNotAllowed():
            return f"{error}; use /control/switch or /control/unpin"
        case ModelNotFound(known=()):
            return f"{error}; GET /v1/models lists those that do"
        case _:
            return str(error)


def error_body(error: RequestError) -> bytes:
    """OpenAI's envelope, ``{"error": {"message", "type", "param", "code"}}``."""
    shape = shape_of(error)
    envelope = {"message": _message(error), "type": shape.type, "param": shape.param, "code": shape.code}
    return msgspec.json.encode({"error": envelope})


def error_event(error: RequestError, endpoint: str = "") -> bytes:
    """The error as the last event of a stream; the blank line before it ends an event that was cut short."""
    if endpoint != MESSAGES_ENDPOINT:
        return b"\n\n" + _event(b"", error_body(error))
    inner = {"type": _MESSAGES_TYPES.get(shape_of(error).status, "api_error"), "message": _message(error)}
    return b"\n\n" + _event(b"error", msgspec.json.encode({"type": "error", "error": inner}))


def engine_error_event(status: int, body: bytes, endpoint: str) -> bytes:
    """An engine's answer of an error status as the last event of a stream that had begun before it."""
    try:
        document = msgspec.json.decode(body)
    except ValueError:  # not JSON, or not UTF-8
        document = None
    if not isinstance(document, dict) or "error" not in document:
        message = document.get("message") if isinstance(document, dict) else None
        kind = _SERVER if status >= 500 else _INVALID
        message = message or body.decode(errors="replace") or f"the engine answered with status {status}"
        document = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return _event(b"error" if endpoint == MESSAGES_ENDPOINT else b"", msgspec.json.encode(document))


def _event(name: bytes, document: bytes) -> bytes:
    return (b"event: " + name + b"\n" if name else b"") + b"data: " + document + b"\n\n"


def error_headers(error: RequestError) -> bytes:
    """The header lines specific to the error, each ended by CRLF."""
    shape = shape_of(error)
    lines = b"x-llmux-error: 1\r\n"
    retry_after_seconds = shape.retry_after_seconds
    match error:
        case EngineUnavailable():
            retry_after_seconds = max(1, math.ceil(error.retry_after_seconds))
        case (
            QueueTimeout(start=StartProgress(left_seconds=left))
            | ModelNotLoaded(start=StartProgress(left_seconds=left))
        ):
            retry_after_seconds = _START_RETRY_SECONDS if left is None else max(1, math.ceil(left))
        case _:
            pass
    if retry_after_seconds is not None:
        lines += b"retry-after: %d\r\n" % retry_after_seconds
    match error:
        case InvalidApiKey():
            lines += b'www-authenticate: Bearer realm="llmux"\r\n'
        case MethodNotAllowed():
            lines += b"allow: " + ", ".join(error.allowed).encode() + b"\r\n"
        case _:
            pass
    return lines


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:  # A status that the standard library does not know.
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


def _answer(status: int, headers: bytes, body: bytes, *, keep_alive: bool, head_only: bool) -> bytes:
    connection = b"" if keep_alive else b"connection: close\r\n"
    length = b"content-length: %d\r\n\r\n" % len(body)
    return _status_line(status) + headers + connection + length + (b"" if head_only else body)


def error_answer(error: RequestError, request_id: bytes, *, keep_alive: bool, head_only: bool) -> bytes:
    """The whole answer for an error."""
    headers = b"content-type: application/json\r\n" + error_headers(error) + b"x-request-id: " + request_id + b"\r\n"
    return _answer(shape_of(error).status, headers, error_body(error), keep_alive=keep_alive, head_only=head_only)


def local_answer(answer: LocalAnswer, request_id: bytes, *, keep_alive: bool, head_only: bool) -> bytes:
    """The whole answer for one of llmux's own paths."""
    headers = f"content-type: {answer.content_type}\r\n".encode() + b"x-request-id: " + request_id + b"\r\n"
    return _answer(answer.status, headers, answer.body, keep_alive=keep_alive, head_only=head_only)
