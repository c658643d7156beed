"""Fields at the top level of JSON bodies that an engine must not get, since they reach beyond the client's own request.

However a client writes them: with escapes, more than once, or in other letters that the engine takes for the same ones.
Go's parser does not mind upper and lower case, and takes the Kelvin sign for a k.
"""

from collections.abc import Iterable

from llmux.gateway.body_model import without_fields

_OTHER_SPELLINGS = (b"\\u00", b"\\u017f", b"\\u212a", "\u017f".encode(), "\u212a".encode(), b"\0")
"""A body that has none of these spells letters as themselves: escapes, the long s, the Kelvin sign, UTF-16."""


class RemovedFields:
    """Some fields, and a quick way to see that a body has none of them."""

    __slots__ = ("_marks", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(name.casefold() for name in names)
        """Case-folded."""
        self._marks = (*(name.encode() for name in sorted(self.names)), *_OTHER_SPELLINGS)

    def may_be_in(self, body: bytes) -> bool:
        """False if no parser finds one of them in the body; about a nanosecond per byte."""
        lower = body.lower()
        return any(mark in lower for mark in self._marks)

    def without(self, body: bytes) -> bytes:
        """The body without the fields; as it is if it has none.

        Raises InvalidJson where a body that may have one cannot be read, and TooLong.
        """
        return without_fields(body, self.names) if self.may_be_in(body) else body
