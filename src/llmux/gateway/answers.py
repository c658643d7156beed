"""llmux's own answers as bytes: errors, as status, headers and the API's envelope, and the paths it serves itself."""

import math
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from llmux.core.request import Request
from llmux.errors import (
    EngineDied,
    EngineError,
    EngineUnavailable,
    Evicted,
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
from llmux.gateway.endpoints import is_anthropic
from llmux.gateway.errors import (
    BadGateway,
    HeadTooLarge,
    HostNotAllowed,
    InternalError,
    InvalidApiKey,
    InvalidJson,
    MalformedRequest,
    MethodNotAllowed,
    MissingModel,
    OriginNotAllowed,
    OutOfDescriptors,
    PathForbidden,
    RequestStalled,
    RequestTooLarge,
    TooManyHeaders,
    UnknownPath,
    UnsupportedEncoding,
    UnsupportedMediaType,
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
    OriginNotAllowed: ErrorShape(HTTPStatus.FORBIDDEN, _INVALID, "origin_not_allowed"),
    HostNotAllowed: ErrorShape(HTTPStatus.FORBIDDEN, _INVALID, "host_not_allowed"),
    ModelNotFound: ErrorShape(HTTPStatus.NOT_FOUND, _INVALID, "model_not_found", param="model"),
    UnknownPath: ErrorShape(HTTPStatus.NOT_FOUND, _INVALID, "unknown_path"),
    MethodNotAllowed: ErrorShape(HTTPStatus.METHOD_NOT_ALLOWED, _INVALID, "method_not_allowed"),
    RequestStalled: ErrorShape(HTTPStatus.REQUEST_TIMEOUT, _INVALID, "request_timeout"),
    UnsupportedMediaType: ErrorShape(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, _INVALID, "unsupported_media_type"),
    RequestTooLarge: ErrorShape(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _INVALID, "request_too_large"),
    HeadTooLarge: ErrorShape(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _INVALID, "headers_too_large"),
    TooManyHeaders: ErrorShape(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _INVALID, "headers_too_large"),
    UnsupportedEncoding: ErrorShape(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, _INVALID, "unsupported_encoding"),
    QueueFull: ErrorShape(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error", "queue_full", retry_after_seconds=5),
    InternalError: ErrorShape(HTTPStatus.INTERNAL_SERVER_ERROR, _SERVER, "internal_error"),
    UpgradeRefused: ErrorShape(HTTPStatus.NOT_IMPLEMENTED, _INVALID, "upgrade_not_supported"),
    EngineError: ErrorShape(HTTPStatus.BAD_GATEWAY, _SERVER, "bad_gateway"),
    BadGateway: ErrorShape(HTTPStatus.BAD_GATEWAY, _SERVER, "bad_gateway"),
    EngineDied: ErrorShape(HTTPStatus.BAD_GATEWAY, _SERVER, "engine_died"),
    EngineUnavailable: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "model_unavailable", retry_after_seconds=5),
    Overloaded: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "overloaded", retry_after_seconds=5),
    ModelNotAllowed: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "model_not_allowed", retry_after_seconds=10),
    ModelNotLoaded: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "model_not_loaded"),
    OutOfDescriptors: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "out_of_descriptors", retry_after_seconds=1),
    ShuttingDown: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "shutting_down", retry_after_seconds=5),
    Evicted: ErrorShape(HTTPStatus.SERVICE_UNAVAILABLE, _SERVER, "evicted", retry_after_seconds=1),
    QueueTimeout: ErrorShape(HTTPStatus.GATEWAY_TIMEOUT, _SERVER, "queue_timeout"),
}
"""Every kind of RequestError: a test fails if one is missing."""

_ANTHROPIC_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}
"""Anthropic's words by status. Their overload is a 529; here it is 503, upon which their clients try again as well."""

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
        case ModelNotAllowed(stays=True):
            return f"{error}; use /control/sleep or /control/unpin"
        case ModelNotAllowed():
            return f"{error}; use /control/switch or /control/unpin"
        case ModelNotFound(known=()):
            return f"{error}; GET /v1/models lists those that do"
        case EngineUnavailable():
            return f"{error}; the operator finds its output with GET /control/models/MODEL/logs"
        case _:
            return str(error)


def error_body(error: RequestError, path: bytes = b"", request_id: bytes = b"") -> bytes:
    """OpenAI's envelope, ``{"error": {"message", "type", "param", "code"}}``; Anthropic's where ``path`` is theirs."""
    shape = shape_of(error)
    # What a client wrote may be no text.
    message = _message(error).encode("utf-8", "backslashreplace").decode()
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(shape.status, "invalid_request_error" if shape.status < 500 else "api_error")
        envelope = {"type": kind, "message": message}
        return msgspec.json.encode({"type": "error", "error": envelope, "request_id": request_id.decode()})
    return msgspec.json.encode(
        {"error": {"message": message, "type": shape.type, "param": shape.param, "code": shape.code}}
    )


def error_event(error: RequestError, path: bytes = b"", request_id: bytes = b"") -> bytes:
    """The error as the last event of a stream; the blank line before it ends an event that was cut short."""
    name = b"error" if is_anthropic(path) else b""
    return b"\n\n" + _event(name, error_body(error, path, request_id))


def engine_error_event(status: int, body: bytes, path: bytes) -> bytes:
    """An engine's answer of an error status as the last event of a stream that had begun before it."""
    try:
        document = msgspec.json.decode(body)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
        document = None
    if not isinstance(document, dict) or "error" not in document:
        message = document.get("message") if isinstance(document, dict) else None
        kind = _SERVER if status >= 500 else _INVALID
        message = message or body.decode(errors="replace") or f"the engine answered with status {status}"
        document = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return _event(b"error" if is_anthropic(path) else b"", msgspec.json.encode(document))


def waiting_times(request: Request) -> bytes:
    """The lines of an answer's head, after the end of the line before them, that tell what its request waited for."""
    lines = b"\r\nx-llmux-queue-ms: %d\r\n" % (request.queue_seconds * 1000)
    if request.forecast_seconds is not None:
        lines += b"x-llmux-forecast-ms: %d\r\n" % (request.forecast_seconds * 1000)
    if request.switch_seconds is not None:
        lines += b"x-llmux-switch-ms: %d\r\n" % (request.switch_seconds * 1000)
    return lines


def _event(name: bytes, document: bytes) -> bytes:
    return (b"event: " + name + b"\n" if name else b"") + b"data: " + document + b"\n\n"


def error_headers(error: RequestError) -> bytes:
    """The header lines specific to the error, each ended by CRLF."""
    shape = shape_of(error)
    lines = b"x-llmux-error: 1\r\n"
    retry_after_seconds = shape.retry_after_seconds
    match error:
        case EngineUnavailable() | Overloaded():
            retry_after_seconds = max(1, math.ceil(error.retry_after_seconds))
        case (
            QueueTimeout(start=StartProgress(left_seconds=left))
            | ModelNotLoaded(start=StartProgress(left_seconds=left))
        ):
            retry_after_seconds = _START_RETRY_SECONDS if left is None else max(1, math.ceil(left))
        case QueueFull(forecast_seconds=float() as forecast) | QueueTimeout(forecast_seconds=float() as forecast):
            retry_after_seconds = max(1, math.ceil(forecast))
        case _:
            pass
    if retry_after_seconds is not None:
        lines += b"retry-after: %d\r\n" % retry_after_seconds
    match error:
        case InvalidApiKey():
            lines += b'www-authenticate: Bearer realm="llmux"\r\n'
        case MethodNotAllowed():
            lines += b"allow: " + ", ".join(error.allowed).encode() + b"\r\n"
        case UnsupportedEncoding():
            lines += b"accept-encoding: identity\r\n"
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


def error_answer(
    error: RequestError,
    request_id: bytes,
    *,
    keep_alive: bool,
    head_only: bool,
    path: bytes = b"",
    cors_fields: bytes = b"",
) -> bytes:
    """The whole answer for an error, in the shape that clients of ``path`` expect."""
    headers = b"content-type: application/json\r\n" + error_headers(error) + b"x-request-id: " + request_id + b"\r\n"
    headers += cors_fields
    body = error_body(error, path, request_id)
    return _answer(shape_of(error).status, headers, body, keep_alive=keep_alive, head_only=head_only)


def preflight_answer(fields: bytes, request_id: bytes, *, keep_alive: bool) -> bytes:
    """The whole answer to a browser that asks whether a page may send a request."""
    connection = b"" if keep_alive else b"connection: close\r\n"
    return (
        _status_line(HTTPStatus.NO_CONTENT) + fields + b"x-request-id: " + request_id + b"\r\n" + connection + b"\r\n"
    )


def local_answer(
    answer: LocalAnswer, request_id: bytes, *, keep_alive: bool, head_only: bool, cors_fields: bytes = b""
) -> bytes:
    """The whole answer for one of llmux's own paths."""
    headers = f"content-type: {answer.content_type}\r\n".encode() + b"x-request-id: " + request_id + b"\r\n"
    headers += cors_fields
    return _answer(answer.status, headers, answer.body, keep_alive=keep_alive, head_only=head_only)
