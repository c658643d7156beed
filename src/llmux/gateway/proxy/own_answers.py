"""What llmux itself answers to a client's request: written whole, and counted."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from llmux.errors import RequestError
from llmux.gateway.answers import error_answer, local_answer, preflight_answer, shape_of
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.routing import Route, answer_locally
from llmux.gateway.state import GatewayState


class Asker(Protocol):
    """The client's connection, with its current request."""

    head: RequestHead
    cors_fields: bytes
    started_at: float
    write: Callable[[bytes], None]


def write_local(state: GatewayState, asker: Asker, route: Route, *, keep_alive: bool) -> None:
    """Answer one of llmux's own paths; raises RequestError."""
    head, cors = asker.head, asker.cors_fields
    answer = answer_locally(head.method, route, state.options.local_routes)
    request_id, head_only = head.request_id or state.new_request_id(), head.is_head
    asker.write(local_answer(answer, request_id, keep_alive=keep_alive, head_only=head_only, cors_fields=cors))
    _count(state, asker, route, answer.status, len(answer.body))


def write_preflight(state: GatewayState, asker: Asker, fields: bytes, *, keep_alive: bool) -> None:
    """Answer a browser that asks whether a page may send a request; the header lines ``fields`` say so."""
    request_id = asker.head.request_id or state.new_request_id()
    asker.write(preflight_answer(fields, request_id, keep_alive=keep_alive))
    _count(state, asker, None, HTTPStatus.NO_CONTENT, 0)


def write_error(asker: Asker, error: RequestError, request_id: bytes, *, keep_alive: bool, head_only: bool) -> None:
    """Answer an error, which is to be counted by whoever has it."""
    path, cors = asker.head.path, asker.cors_fields
    asker.write(
        error_answer(error, request_id, keep_alive=keep_alive, head_only=head_only, path=path, cors_fields=cors)
    )


def count_error(state: GatewayState, asker: Asker, route: Route | None, error: RequestError) -> None:
    """Count a request that has no exchange and ends with an error."""
    _count(state, asker, route, shape_of(error).status, 0)


def _count(state: GatewayState, asker: Asker, route: Route | None, status: int, body_bytes: int) -> None:
    counts = state.statistics.of(asker.head.method, "other" if route is None else route.endpoint)
    counts.count(status, time.monotonic() - asker.started_at, body_bytes)
