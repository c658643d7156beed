"""Large bodies: read by a thread, and kept in a file while their requests wait."""

import mmap
import tempfile
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from llmux import os_errors
from llmux.core.names import Register
from llmux.gateway import pieces
from llmux.gateway.body_fields import decode_fields
from llmux.gateway.body_model import require_valid
from llmux.gateway.errors import InvalidJson, MalformedRequest
from llmux.gateway.form import LARGE_FORM_BYTES
from llmux.gateway.http.bodies import Body
from llmux.gateway.http.request_head import RequestHead
from llmux.gateway.json_outline import outline_of
from llmux.gateway.routing import EngineCall, Route, find_model

log = structlog.get_logger("llmux.gateway")

LARGE_JSON_BYTES: Final = 1024 * 1024
"""From this size on, and from LARGE_FORM_BYTES on for a form, finding the model takes more than about 2 ms."""

_WRITTEN_BYTES = 1024 * 1024
"""So much of a body is written to a file before it is another one's turn."""
_NO_JSON = b"{"
"""Stands for a body that is not JSON, whatever it is."""


class BodyDropped(Exception):
    """The client left before a thread could read its body."""


class UnreadBody:
    """A body that waits for a thread: once it is dropped, it takes neither memory nor the thread's time.

    ``on_release`` ends its counting, which goes on while the thread has it, even if its client has left.
    """

    __slots__ = ("_on_release", "body")

    def __init__(self, body: bytes, on_release: Callable[[], None] | None) -> None:
        self.body: bytes | None = body
        self._on_release = on_release

    def release(self) -> None:
        """The thread is done with it."""
        if self._on_release is not None:
            self._on_release()


def is_large(head: RequestHead, size_bytes: int) -> bool:
    """Whether a body must not be read on the event loop."""
    return size_bytes >= LARGE_FORM_BYTES and (head.is_form or size_bytes >= LARGE_JSON_BYTES)


def read_large(head: RequestHead, route: Route, unread: UnreadBody, names: Register, spool_bytes: int) -> EngineCall:
    """Like ``find_model``, to be run in a thread; a body of ``spool_bytes`` or more is returned as a file's memory.

    Of a large JSON body only the structure is validated. Raises RequestError or BodyDropped.
    """
    body, unread.body = unread.body, None
    if body is None:
        raise BodyDropped
    call = _read_json(head, route, body, names) if not head.is_form else find_model(head, route, body, names)
    return call if len(call.body) < spool_bytes else call.with_body(_spooled(call.body))


def _read_json(head: RequestHead, route: Route, body: bytes, names: Register) -> EngineCall:
    variants = route.variants
    try:
        if len(body) < LARGE_JSON_BYTES:
            require_valid(body)
        outline = outline_of(body, variants.paths.removed if variants is not None else frozenset())
    except MalformedRequest as error:
        try:
            # Where a body may be anything, this one is passed on.
            call = find_model(head, route, _NO_JSON, names)
        except InvalidJson:
            raise error from None
        if variants is not None and variants.of(call.model).removed is not None:
            raise  # Nobody knows what its engine would find in it.
        return call.with_body(body)
    call = find_model(head, route, outline.text, names)
    edits: list[tuple[int, int, bytes]] = []
    added = dict(call.added_fields)
    if call.body != outline.text and (model := decode_fields(call.body).model) is not None:
        edits += [(start, end, msgspec.json.encode(model)) for start, end in outline.model_places]
        if not edits:
            added["model"] = model
    if variants is not None and (removed := variants.of(call.model).removed) is not None:
        edits += [(start, end, b"") for start, end in outline.places_of(removed.names)]
    if added:
        # A large object has other members, but for one that has only what is cut out of it, which no engine answers.
        members = msgspec.json.encode(added)[1:-1] + b","
        edits.append((outline.begins_at, outline.begins_at, members))
    return call.with_body(pieces.edit(body, sorted(edits)) if edits else body)


def _spooled(body: Body) -> Body:
    """The same bytes, mapped from a temporary file without a name, which is freed with the last reference to them."""
    try:
        with tempfile.TemporaryFile(prefix="llmux-", buffering=0) as file:
            rest = memoryview(body)
            while rest:
                rest = rest[file.write(rest[:_WRITTEN_BYTES]) :]
                pieces.pause()
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        log.warning(
            "a large request waits in memory, since it could not be written to a temporary file; free some space, or "
            "set TMPDIR or spool_bytes",
            reason=os_errors.describe(error),
            size_bytes=len(body),
        )
        return body
