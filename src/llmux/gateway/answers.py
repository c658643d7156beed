"""Answers of llmux's own, as bytes."""

from http import HTTPStatus

from llmux.errors import RequestError
from llmux.gateway.errors import error_body, error_headers, shape_of
from llmux.gateway.options import LocalAnswer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


def _answer(status: int, headers: bytes, body: bytes, *, keep_alive: bool, head_only: bool) -> bytes:
    connection = b"" if keep_alive else b"connection: close\r\n"
    length = b"content-length: %d\r\n\r\n" % len(body)
    return _status_line(status) + headers + connection + length + (b"" if head_only else body)


def error_answer(error: RequestError, request_id: bytes, *, keep_alive: bool, head_only: bool) -> bytes:
    """The whole answer that tells a client of an error."""
    headers = b"content-type: application/json\r\n" + error_headers(error) + b"x-request-id: " + request_id + b"\r\n"
    return _answer(shape_of(error).status, headers, error_body(error), keep_alive=keep_alive, head_only=head_only)


def local_answer(answer: LocalAnswer, request_id: bytes, *, keep_alive: bool, head_only: bool) -> bytes:
    """The whole answer of one of llmux's own paths."""
    headers = f"content-type: {answer.content_type}\r\n".encode() + b"x-request-id: " + request_id + b"\r\n"
    return _answer(answer.status, headers, answer.body, keep_alive=keep_alive, head_only=head_only)
