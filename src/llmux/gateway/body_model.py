"""What the gateway reads in a JSON body, ``model`` and ``stream``, and how the model is replaced in it."""

import json
import re
from typing import Any, NamedTuple

import msgspec

from llmux.gateway.errors import InvalidJson, MalformedRequest

TRUE = frozenset((b"true", b"1", b"yes", b"on", b"t", b"y"))
"""What pydantic, with which engines validate, takes for true in a field of type bool, in lower case."""

_MAX_LENIENT_BYTES = 4 << 20
"""Larger bodies are not read a second time, with Python's parser: it takes ten times as long."""
_BOM = b"\xef\xbb\xbf"
_MSGSPEC_PLACE = re.compile(r"(?:JSON is malformed: )?(.*) \(byte (\d+)\)")


class _Fields(msgspec.Struct):
    model: str | None = None
    stream: msgspec.Raw = msgspec.Raw(b"false")
    """Left unparsed: an engine may accept more than a boolean."""


_decoder = msgspec.json.Decoder(_Fields)


class JsonBody(NamedTuple):
    """What the gateway reads in a JSON body."""

    model: str | None
    streams: bool
    """Whether the answer is to come as a stream."""
    text: bytes
    """The body, without a byte order mark."""

    def with_model(self, model: str) -> bytes:
        """The body with its top-level ``model`` replaced; raises InvalidJson."""
        return replace_model(self.text, model)


def read_json(body: bytes) -> JsonBody:
    """Read a body as engines do, whose parser is Python's: NaN, Infinity, lone surrogates and a byte order mark pass.

    Raises InvalidJson, which says what is wrong and where, or MalformedRequest.
    """
    try:
        fields = _decoder.decode(body)
    except msgspec.ValidationError:
        raise _not_an_object() from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _read_leniently(body, error)
    return JsonBody(fields.model, bytes(fields.stream).strip(b'"').lower() in TRUE, body)


def _read_leniently(body: bytes, first_error: Exception) -> JsonBody:
    if body.startswith(_BOM):
        return read_json(body.removeprefix(_BOM))
    fields = _parse(body, first_error)
    model, stream = fields.get("model"), fields.get("stream", False)
    if not isinstance(model, str | None):
        raise _not_an_object()
    return JsonBody(model, str(stream).lower().encode("utf-8", "replace") in TRUE, body)


def _parse(body: bytes, first_error: Exception) -> dict[str, Any]:
    """The object that Python's parser reads in the body. ``first_error`` is msgspec's, for one that is too large."""
    if not body:
        raise InvalidJson("the body is empty; a JSON object is needed here")
    if len(body) > _MAX_LENIENT_BYTES:
        place = _MSGSPEC_PLACE.fullmatch(str(first_error))
        raise _invalid(place[1] if place else str(first_error), int(place[2]) if place else None)
    try:
        fields = json.loads(body)
    except json.JSONDecodeError as error:
        raise _invalid(error.msg, len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))) from None
    except UnicodeDecodeError as error:
        raise _invalid(f"not {error.encoding}", error.start) from None
    except RecursionError:
        raise _invalid("nested too deeply") from None
    except ValueError as error:  # A number of more digits than Python reads.
        raise _invalid(str(error)) from None
    if not isinstance(fields, dict):
        raise _not_an_object()
    return fields


def _invalid(what: str, at_byte: int | None = None) -> InvalidJson:
    what = what[:200].removesuffix(" at")
    return InvalidJson(f"the body is not valid JSON: {what}" + ("" if at_byte is None else f" at byte {at_byte}"))


def _not_an_object() -> MalformedRequest:
    return MalformedRequest('the body must be a JSON object whose "model" is a string')


def replace_model(body: bytes, model: str) -> bytes:
    """The JSON object with its top-level ``model`` replaced; every other value keeps its spelling, if msgspec reads it.

    Raises InvalidJson.
    """
    fields: dict[str, Any]
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fields = _parse(body, error)
        fields["model"] = model
        return json.dumps(fields, separators=(",", ":")).encode()
    fields["model"] = model
    return msgspec.json.encode(fields)
