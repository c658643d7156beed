"""The few members of a large JSON object that decide where it goes, found piece by piece (``pieces.py``).

What is skipped is not validated, which is left to the engine.
"""

import json
import re
from codecs import BOM_UTF8
from typing import NamedTuple

from llmux.gateway import pieces
from llmux.gateway.body_model import refuse_other_encodings
from llmux.gateway.errors import InvalidJson, MalformedRequest

_MAX_REDUCTIONS = 64
_MAX_KEPT_BYTES = 4096
_MAX_MEMBERS = 10_000
"""Each takes several microseconds of Python, as little as six bytes of a body, and memory if it is a ``model``."""
_NAMES = {"model": b'"model"', "stream": b'"stream"'}
_MAX_NAME_BYTES = len('"stream"') * 6
"""Every character may be written as an escape of six."""
_MAX_SCALAR_BYTES = 64 * 1024

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[^ \t\r\n,\[\]{}\":]++")
_IN_STRING = re.compile(rb"[^\"\\]*+(?:\\.[^\"\\]*+)*+", re.DOTALL)
_STRING = re.compile(rb"\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\"", re.DOTALL)
_WHOLE_TOKENS = re.compile(rb"(?:[^\"]++|\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\")*+", re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]|\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\"", re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Outline(NamedTuple):
    """An object that has only those members of another that an engine may read as ``model`` or ``stream``."""

    text: bytes
    model_places: tuple[tuple[int, int], ...]
    """Where the values of ``model`` stand in the other object."""


def outline_of(body: bytes) -> Outline:
    """The outline of a JSON object; raises InvalidJson, or MalformedRequest for one with too many members."""
    return _Reader(body).read()


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body = body
        self._found: dict[bytes, bytes] = {}
        """By key; of equal keys the last counts, as to Python."""
        self._model_places: list[tuple[int, int]] = []
        self._pause_at = pieces.PIECE_BYTES

    def read(self) -> Outline:
        body = self._body
        refuse_other_encodings(body)
        at = self._after_space(len(BOM_UTF8) if body.startswith(BOM_UTF8) else 0)
        if body[at : at + 1] != b"{":
            # Whoever reads this says what is wrong with it; no object has to be looked through.
            return Outline(b"[]" if body[at : at + 1] == b"[" else body[at : at + 16] or b"", ())
        at = self._after_space(at + 1)
        if body[at : at + 1] != b"}":
            at = self._members_from(at)
        if self._after_space(at + 1) != len(body):
            raise self._invalid(at + 1)
        members = b",".join(key + b":" + value for key, value in self._found.items())
        return Outline(b"{" + members + b"}", tuple(self._model_places))

    def _members_from(self, at: int) -> int:
        """Read members until the object's closing brace, whose offset is returned."""
        body = self._body
        for _ in range(_MAX_MEMBERS):
            if body[at : at + 1] != b'"':
                raise self._invalid(at)
            key_end = self._after_string(at)
            key = body[at : min(key_end, at + _MAX_NAME_BYTES + 1)]
            at = self._after_space(key_end)
            if body[at : at + 1] != b":":
                raise self._invalid(at)
            start = self._after_space(at + 1)
            end = self._after_value(start)
            self._member(key, start, end)
            at = self._after_space(end)
            if body[at : at + 1] == b"}":
                return at
            if body[at : at + 1] != b",":
                raise self._invalid(at)
            at = self._after_space(at + 1)
        raise MalformedRequest(f"the JSON object has more than {_MAX_MEMBERS} members")

    def _member(self, key: bytes, start: int, end: int) -> None:
        name = _name(key)
        if name is None:
            return
        value = self._body[start:end] if end - start <= _MAX_KEPT_BYTES else self._stand_in(start)
        self._found[name] = value
        if name == b'"model"':
            self._model_places.append((start, end))

    def _stand_in(self, start: int) -> bytes:
        """A short value of the same type."""
        return {b"{": b"{}", b"[": b"[]", b'"': b'"..."'}.get(self._body[start : start + 1], b"0")

    def _after_value(self, at: int) -> int:
        first = self._body[at : at + 1]
        if first == b'"':
            return self._after_string(at)
        if first in (b"{", b"["):
            return self._after_nested(at)
        scalar = _SCALAR.match(self._body, at, at + _MAX_SCALAR_BYTES)
        if scalar is None:
            raise self._invalid(at)
        return scalar.end()

    def _after_space(self, at: int) -> int:
        while True:
            space = _SPACE.match(self._body, at, at + pieces.PIECE_BYTES)
            assert space is not None
            at = space.end()
            self._pause(at)
            if at - space.start() < pieces.PIECE_BYTES:
                return at

    def _after_string(self, at: int) -> int:
        body = self._body
        at += 1
        while at < len(body):
            inside = _IN_STRING.match(body, at, at + pieces.PIECE_BYTES)
            assert inside is not None
            end = inside.end()
            self._pause(end)
            if body[end : end + 1] == b'"':
                return end + 1
            # Without progress it is at an escape that nothing follows.
            at = end if end > at else at + 2
        raise self._invalid(len(body))

    def _after_nested(self, at: int) -> int:
        body = self._body
        depth = 1
        at += 1
        while at < len(body):
            tokens = _WHOLE_TOKENS.match(body, at, at + pieces.PIECE_BYTES)
            assert tokens is not None
            end = tokens.end()
            closing, opening = _unbalanced(body[at:end])
            if closing >= depth:
                found, depth = _closing_bracket(body, at, end, depth)
                if found >= 0:
                    return found
            else:
                depth += opening - closing
            self._pause(end)
            at = end if end >= len(body) or body[end : end + 1] != b'"' else self._after_string(end)
        raise self._invalid(len(body))

    def _pause(self, at: int) -> None:
        if at >= self._pause_at:
            self._pause_at = at + pieces.PIECE_BYTES
            pieces.pause()

    def _invalid(self, at: int) -> InvalidJson:
        return InvalidJson(f"the body is not valid JSON: at byte {min(at, len(self._body))}")


def _unbalanced(piece: bytes) -> tuple[int, int]:
    """How many brackets are closed in the piece that were opened before it, and how many it leaves open."""
    brackets = _STRING.sub(b"", piece).translate(None, _NO_BRACKETS)
    for _ in range(_MAX_REDUCTIONS):
        shorter = brackets.replace(b"{}", b"").replace(b"[]", b"")
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    closing = brackets.count(b"}") + brackets.count(b"]")
    return closing, len(brackets) - closing


def _closing_bracket(body: bytes, start: int, end: int, depth: int) -> tuple[int, int]:
    """The offset after the bracket that closes ``depth`` levels, or -1, and the depth at the end."""
    for token in _BRACKET.finditer(body, start, end):
        first = token[0]
        if first in (b"{", b"["):
            depth += 1
        elif first in (b"}", b"]"):
            depth -= 1
            if not depth:
                return token.end(), 0
    return -1, depth


def _name(key: bytes) -> bytes | None:
    """The key as JSON spells it shortest, if the gateway reads its value."""
    if b"\\" not in key or len(key) > _MAX_NAME_BYTES:
        return key if key in _NAMES.values() else None
    try:
        return _NAMES.get(json.loads(key))
    except ValueError:
        return None
