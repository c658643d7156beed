"""What the gateway reads in a JSON body, ``model``, ``stream`` and ``keep_alive``, and how ``model`` is replaced."""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from llmux.gateway.body_fields import ABSENT, decode_fields
from llmux.gateway.errors import InvalidJson, MalformedRequest

TRUE: Final = frozenset((b"true", b"1", b"yes", b"on", b"t", b"y"))
"""What pydantic, with which engines validate, takes for true in a field of type bool, in lower case."""

# Bound once, for speed: see the docstring of llmux.gateway.
_decode_fields: Final = decode_fields
_ABSENT: Final = ABSENT

_MAX_QUICK_BYTES = 32 * 1024
"""What takes a Python object for each value of the body, at up to a quarter of a microsecond per byte, is done with
smaller bodies only."""
_MAX_LENIENCIES = 1000
_NOT_A_NUMBER = re.compile(rb"(?<=[\[,: \t\r\n])(?:NaN|-?Infinity)(?=[,\]} \t\r\n])")
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F]..)|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]..", re.DOTALL
)
_MSGSPEC_PLACE = re.compile(r"(?:JSON is malformed: )?(.*) \(byte (\d+)\)")


class TooLong(Exception):
    """The body is too long for what must be done with it on the event loop: a thread is to read it."""


class JsonBody(NamedTuple):
    """What the gateway reads in a JSON body."""

    model: str | None
    streams: bool
    """Whether the answer is to come as a stream."""
    text: bytes
    """The body, without a byte order mark."""
    keep_alive: bytes = b""
    """How long the model is to stay, as JSON; empty if that is not said."""

    def with_model(self, model: str) -> bytes:
        """The body with its top-level ``model`` replaced; raises InvalidJson or TooLong."""
        return replace_model(self.text, model)


def read_json(body: bytes) -> JsonBody:
    """What ``read_fields`` finds, with names."""
    return JsonBody(*read_fields(body))


def read_fields(body: bytes) -> tuple[str | None, bool, bytes, bytes]:
    """The fields of ``JsonBody`` as a plain tuple: making a named one would cost each request as much as reading them.

    Read as engines do, whose parser is Python's: NaN, Infinity, lone surrogates and a byte order mark pass.

    Of the encodings that Python guesses only UTF-8 does, which RFC 8259 prescribes: no other is read in large bodies.
    Raises InvalidJson, which says what is wrong and where, MalformedRequest or TooLong.
    """
    try:
        fields = _decode_fields(body)
    except msgspec.ValidationError:
        raise _not_an_object() from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_leniently(body)
    if not body.isascii():
        _require_utf8(body)
    streams = fields.stream is not _ABSENT and bytes(fields.stream).strip(b'"').lower() in TRUE
    keep_alive = b"" if fields.keep_alive is _ABSENT else bytes(fields.keep_alive)
    return fields.model, streams, body, keep_alive


def _require_utf8(body: bytes) -> None:
    """msgspec does not look at what it skips, but engines refuse it, and no model is to be woken for that.

    Most bodies are ASCII, and not worth the copy that decoding makes.
    """
    try:
        body.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise _invalid("not UTF-8", error.start) from None


def refuse_other_encodings(body: bytes) -> None:
    """Raise InvalidJson for UTF-16 and UTF-32, which Python's parser knows by the first bytes."""
    encoding = json.detect_encoding(body[:4])
    if not encoding.startswith("utf-8"):
        raise _invalid(f"it is encoded as {encoding[:6].upper()}; send it as UTF-8")


def _read_leniently(body: bytes) -> tuple[str | None, bool, bytes, bytes]:
    refuse_other_encodings(body)
    if body.startswith(BOM_UTF8):
        return read_fields(body.removeprefix(BOM_UTF8))
    fields = _parse(body)
    model, stream = fields.get("model"), fields.get("stream", False)
    if not isinstance(model, str | None):
        raise _not_an_object()
    keep_alive = json.dumps(fields["keep_alive"]).encode() if "keep_alive" in fields else b""
    return model, str(stream).lower().encode("utf-8", "replace") in TRUE, body, keep_alive


def require_valid(body: bytes) -> None:
    """Raise InvalidJson unless the body is JSON, in the sense of ``read_json``; for bodies that are too long for it."""
    refuse_other_encodings(body)
    body = body.removeprefix(BOM_UTF8)
    try:
        _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # The same length, so that errors name the right byte.
        body = _NOT_A_NUMBER.sub(lambda match: b"0".ljust(len(match[0])), body, _MAX_LENIENCIES)
        body = _LONE_SURROGATE.sub(rb"\\u0020", body, _MAX_LENIENCIES)
        try:
            _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            place = _MSGSPEC_PLACE.fullmatch(str(error))
            raise _invalid(place[1] if place else str(error), int(place[2]) if place else None) from None
    if not body.isascii():
        _require_utf8(body)


def _decode(body: bytes) -> None:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except RecursionError:
        raise _invalid("nested too deeply") from None


def _parse(body: bytes) -> dict[str, Any]:
    """The object that Python's parser reads in the body."""
    if not body:
        raise InvalidJson("the body is empty; a JSON object is needed here")
    if len(body) > _MAX_QUICK_BYTES:
        raise TooLong
    try:
        fields = json.loads(body)
    except json.JSONDecodeError as malformed:
        at_byte = len(malformed.doc[: malformed.pos].encode("utf-8", "surrogatepass"))
        raise _invalid(malformed.msg, at_byte) from None
    except UnicodeDecodeError as undecodable:
        raise _invalid(f"not {undecodable.encoding}", undecodable.start) from None
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

    Raises InvalidJson or TooLong.
    """
    return add_fields(body, {"model": model})


def add_fields(body: bytes, added: Mapping[str, object]) -> bytes:
    """The JSON object with these fields at its top level, in place of its own of these names; else as above."""
    fields: dict[str, Any]
    if len(body) > _MAX_QUICK_BYTES:
        raise TooLong
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return json.dumps({**_parse(body), **added}, separators=(",", ":")).encode()
    return msgspec.json.encode({**fields, **added})


def without_fields(body: bytes, names: frozenset[str]) -> bytes:
    """The JSON object without the fields of these (case-folded) names at its top level, whatever their spelling.

    The body as it is if it has none, or is JSON of another type. Raises InvalidJson or TooLong.
    """
    if len(body) > _MAX_QUICK_BYTES:
        raise TooLong
    fields: dict[str, Any]
    is_plain = True
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        is_plain = False
        try:
            fields = _parse(body)
        except InvalidJson:
            raise
        except MalformedRequest:
            return body
    kept = {name: value for name, value in fields.items() if name.casefold() not in names}
    if len(kept) == len(fields):
        return body
    return msgspec.json.encode(kept) if is_plain else json.dumps(kept, separators=(",", ":")).encode()
