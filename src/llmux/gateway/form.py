"""What the gateway reads in a multipart form, ``model`` and ``stream``, and how the model is replaced in it.

Most of such a body is a file, so it is searched for its boundary and never looked at byte by byte. What counts as a
boundary is what does so for python-multipart, with which most engines read forms.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from python_multipart.multipart import parse_options_header

from llmux.gateway import pieces
from llmux.gateway.body_model import TRUE
from llmux.gateway.errors import MalformedRequest

LARGE_FORM_BYTES: Final = 256 * 1024
"""From this size on a form must be read by a thread."""
_MAX_MODEL_NAME_BYTES = 1024
_MAX_PARTS = 256
"""Each takes some 10 µs of Python."""
_MAX_BOUNDARY_BYTES = 256
"""As in python-multipart; RFC 2046 allows 70."""
_MAX_HEADER_BYTES = 16 * 1024
_MAX_OPTIONS_BYTES = 4096
_MAX_OPTIONS = 32
"""Of a header's value with parameters: reading one takes the square of the number of its semicolons."""
_SIMPLE = re.compile(rb'form-data; ?name="([^"\\;%]*)"')
"""What most clients write; python-multipart takes twenty times as long for it."""
_AFTER_BOUNDARY = re.compile(rb"[ \t]{0,100}\r\n|--")
"""The beginning of the next part, or the end of the form."""


@dataclass(frozen=True, slots=True)
class FormBody:
    """What the gateway reads in a form. ``places`` are where the values of ``model`` stand; the last one counts."""

    model: str | None
    streams: bool
    text: bytes
    boundary: bytes
    places: tuple[tuple[int, int], ...]

    def with_model(self, model: str) -> bytes:
        """The form with its ``model`` replaced, or added in front if it has none; all else byte for byte."""
        value = model.encode()
        if not self.places:
            head = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (self.boundary, value)
            begin = self.text.find(b"-")
            return head + (memoryview(self.text)[begin:] if begin > 0 else self.text)
        return pieces.replace_at(self.text, self.places, value)


def read_form(body: bytes, content_type: bytes) -> FormBody:
    """Read a multipart form; raises MalformedRequest."""
    parameters = _parameters(content_type, "the Content-Type of the multipart body")
    boundary = parameters.get(b"boundary", b"")
    if not boundary:
        raise MalformedRequest("the multipart body's Content-Type names no boundary")
    if len(boundary) > _MAX_BOUNDARY_BYTES:
        raise MalformedRequest(f"the multipart body's boundary is longer than {_MAX_BOUNDARY_BYTES} bytes")
    places: list[tuple[int, int]] = []
    stream = b""
    for name, start, end in _fields(body, boundary):
        if name == b"model":
            places.append((start, end))
        elif name == b"stream" and end - start <= len(b"false"):
            stream = body[start:end].lower()
    return FormBody(_value(body, *places[-1]) if places else None, stream in TRUE, body, boundary, tuple(places))


def _parameters(header: bytes, what: str) -> dict[bytes, bytes]:
    """The parameters of a header's value."""
    if len(header) > _MAX_OPTIONS_BYTES or header.count(b";") > _MAX_OPTIONS:
        raise MalformedRequest(f"{what} is longer than {_MAX_OPTIONS_BYTES} bytes or has too many parameters")
    return parse_options_header(header)[1]


def _find(body: bytes, mark: bytes, start: int) -> int:
    """Like ``bytes.find``, which holds Python's lock, but in a large form gives it away after each piece."""
    if len(body) < LARGE_FORM_BYTES:
        return body.find(mark, start)
    while True:
        end = start + pieces.PIECE_BYTES
        at = body.find(mark, start, end + len(mark) - 1)
        if at >= 0 or end >= len(body):
            return at
        pieces.pause()
        start = end


def _value(body: bytes, start: int, end: int) -> str:
    if end - start > _MAX_MODEL_NAME_BYTES:
        raise MalformedRequest('the form\'s field "model" is too long')
    try:
        return body[start:end].decode()
    except UnicodeDecodeError:
        raise MalformedRequest('the form\'s field "model" is not UTF-8') from None


def _fields(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name of each part that is no file, with where its value begins and ends."""
    at = body.find(b"-") if body.startswith((b"\r", b"\n")) else 0
    mark = b"\r\n--" + boundary
    if at < 0 or not body.startswith(mark[2:], at):
        raise MalformedRequest("the multipart body does not begin with its boundary")
    at += len(mark) - 2
    for _ in range(_MAX_PARTS):
        after = _AFTER_BOUNDARY.match(body, at)
        if after is None:
            raise MalformedRequest("the multipart body is malformed behind a boundary")
        if after[0] == b"--":
            return
        start, name = _part(body, after.end())
        end = _find(body, mark, start)
        looked = 0
        while end >= 0 and _AFTER_BOUNDARY.match(body, end + len(mark)) is None and looked < _MAX_PARTS:
            end = _find(body, mark, end + 1)  # The boundary may be the beginning of a line within a file.
            looked += 1
        if end < 0:
            return  # The part is not complete, and to engines there is none.
        if name is not None:
            yield name, start, end
        at = end + len(mark)
    raise MalformedRequest(f"the form has more than {_MAX_PARTS} fields")


def _part(body: bytes, at: int) -> tuple[int, bytes | None]:
    """Where the value of a part begins, and the name of its field; None for a file."""
    end = at - 2 if body.startswith(b"\r\n", at) else body.find(b"\r\n\r\n", at, at + _MAX_HEADER_BYTES)
    if end < 0:
        raise MalformedRequest(
            f"the headers of a part of the multipart body do not end within {_MAX_HEADER_BYTES} bytes"
        )
    name: bytes | None = None
    for line in body[at : max(at, end)].split(b"\r\n"):
        field, colon, value = line.partition(b":")
        if line and not colon:
            raise MalformedRequest("a part of the multipart body has a malformed header")
        if field.lower() == b"content-disposition":
            simple = _SIMPLE.fullmatch(value.strip())
            if simple is not None:
                name = simple[1]
                continue
            parameters = _parameters(value.strip(), "a Content-Disposition in the multipart body")
            name = None if b"filename" in parameters else parameters.get(b"name")
    return end + 4, name
