"""How long a client wants its model to stay on the GPU after its request, in Ollama's words."""

import math
import re

import msgspec

from llmux.core.identifiers import Seconds
from llmux.gateway.errors import MalformedRequest

HEADER = "x-llmux-keep-alive"
FIELD = "keep_alive"
_LONGEST_BYTES = 64
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_DURATION = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")
_PART = re.compile(r"([0-9.]+)([a-zµμ]+)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
"""The units of Go's durations, in which Ollama reads them; both letters for micro are in use."""


def requested_keep_alive(header: bytes | None, field: bytes) -> Seconds | None:
    """What a request says, the header before the body's field, which comes as JSON and is empty where there is none.

    Infinity: until something else needs the place. None where it says nothing. Raises MalformedRequest.
    """
    if header is not None:
        return _read(header.decode("utf-8", "replace"), HEADER)
    if not field or field == b"null":
        return None
    try:
        value = msgspec.json.decode(field[:_LONGEST_BYTES])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _malformed(FIELD) from None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _malformed(FIELD)
    return _read(value, FIELD) if isinstance(value, str) else _negative_as_forever(float(value))


def _read(text: str, name: str) -> Seconds:
    text = text.strip()
    if len(text) <= _LONGEST_BYTES and _NUMBER.fullmatch(text):
        return _negative_as_forever(float(text))
    if len(text) > _LONGEST_BYTES or not _DURATION.fullmatch(text):
        raise _malformed(name)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return _negative_as_forever(-seconds if text.startswith("-") else seconds)


def _negative_as_forever(seconds: float) -> Seconds:
    return math.inf if seconds < 0 else seconds


def _malformed(name: str) -> MalformedRequest:
    return MalformedRequest(
        f"{name} must be a number of seconds or a duration as 10m or 1h30m: 0 has the model leave when nobody uses it, "
        "-1 lets it stay until its place is needed"
    )
