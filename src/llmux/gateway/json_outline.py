"""The few members of a large JSON object that decide where it goes, or must not go there, found piece by piece.

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
_NAMES = {"model": b'"model"', "stream": b'"stream"', "keep_alive": b'"keep_alive"'}
_MAX_ESCAPE_BYTES = len("\\u0000")
"""Every character may be written as an escape."""
_MAX_NAME_BYTES = len('"keep_alive"') * _MAX_ESCAPE_BYTES
_MAX_SCALAR_BYTES = 64 * 1024

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[^ \t\r\n,\[\]{}\":]++")
_IN_STRING = re.compile(rb"[^\"\\]*+(?:\\.[^\"\\]*+)*+", re.DOTALL)
_STRING = re.compile(rb"\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\"", re.DOTALL)
_WHOLE_TOKENS = re.compile(rb"(?:[^\"]++|\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\")*+", re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]|\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\"", re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Outline(NamedTuple):
    """An object that has only those members of another that the gateway reads, as an engine may spell them."""

    text: bytes
    model_places: tuple[tuple[int, int], ...]
    """Where the values of ``model`` stand in the other object."""
    watched: tuple["Member", ...] = ()
    """The members that were to be found beside them, in the other object's order."""
    begins_at: int = 0
    """Where the first member of the other object begins."""

    def places_of(self, names: frozenset[str]) -> list[tuple[int, int]]:
        """What is to be cut out of the other object, so that it has no member of these (case-folded) names."""
        places: list[tuple[int, int]] = []
        gone: list[Member] = []
        for member in self.watched:
            if member.name not in names:
                continue
            begin, end = member.start, member.next_start
            if end is None:
                # The last one takes the comma before it along, and with it those before that are cut out already.
                begin, end = member.previous_end, member.end
                while gone and gone[-1].end == begin:
                    begin = gone.pop().previous_end
                    places.pop()
            places.append((begin, end))
            gone.append(member)
        return places


class Member(NamedTuple):
    """Where one member stands in an object."""

    name: str
    """Case-folded."""
    start: int
    end: int
    previous_end: int
    """Where the member before it ends, or the opening brace."""
    next_start: int | None
    """Where the next member begins; None for the last one."""


def outline_of(body: bytes, watched: frozenset[str] = frozenset()) -> Outline:
    """The outline of a JSON object; raises InvalidJson, or MalformedRequest for one with too many members.

    ``watched`` are the case-folded names of further members that are to be found.
    """
    return _Reader(body, watched).read()


class _Reader:
    def __init__(self, body: bytes, watched: frozenset[str]) -> None:
        self._body = body
        self._watched = watched
        self._max_key_bytes = max((_MAX_NAME_BYTES, *(len(name) * _MAX_ESCAPE_BYTES + 2 for name in watched)))
        self._members: list[Member] = []
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
        at = begins_at = self._after_space(at + 1)
        if body[at : at + 1] != b"}":
            at = self._members_from(at)
        if self._after_space(at + 1) != len(body):
            raise self._invalid(at + 1)
        members = b",".join(key + b":" + value for key, value in self._found.items())
        return Outline(b"{" + members + b"}", tuple(self._model_places), tuple(self._members), begins_at)

    def _members_from(self, at: int) -> int:
        """Read members until the object's closing brace, whose offset is returned."""
        body = self._body
        previous_end = at
        for _ in range(_MAX_MEMBERS):
            if body[at : at + 1] != b'"':
                raise self._invalid(at)
            key_start, key_end = at, self._after_string(at)
            key = body[at : min(key_end, at + self._max_key_bytes + 1)]
            at = self._after_space(key_end)
            if body[at : at + 1] != b":":
                raise self._invalid(at)
            start = self._after_space(at + 1)
            end = self._after_value(start)
            self._member(key, start, end)
            at = self._after_space(end)
            is_last = body[at : at + 1] == b"}"
            if not is_last and body[at : at + 1] != b",":
                raise self._invalid(at)
            next_start = None if is_last else self._after_space(at + 1)
            if self._watched and (name := _decoded(key).casefold()) in self._watched:
                self._members.append(Member(name, key_start, end, previous_end, next_start))
            if next_start is None:
                return at
            at, previous_end = next_start, end
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


def _decoded(key: bytes) -> str:
    """The key as a parser reads it; empty if it is none, or was cut off."""
    try:
        name = json.loads(key)
    except ValueError:
        return ""
    return name if isinstance(name, str) else ""
