"""Recognising a head that repeats an earlier one in everything but its Content-Length."""

from typing import Final

_LENGTH_FIELD: Final = b"\r\ncontent-length:"
_MAX_LENGTH_DIGITS: Final = 15
"""A longer number is left to the full parser, which decides whether it is a length at all."""
_MAX_CACHED_LENGTHS: Final = 4096
"""Most bodies and answers have a few KiB, so that most lengths are among the first thousands; all take half a MiB."""

_cached_lengths: Final[dict[bytes, int]] = {}
"""Digits already read, for all connections: reading them costs several times the look-up. Never more than
_MAX_CACHED_LENGTHS."""


class RepeatedHead:
    """One head, cut at the digits of its Content-Length.

    Clients and engines repeat themselves: successive heads of one peer usually differ in their length only, and a head
    that equals one already validated need not be parsed again.
    """

    __slots__ = ("_after", "_after_bytes", "_before", "_before_bytes")

    def __init__(self) -> None:
        self._before = b""
        self._before_bytes = 0
        """The length of that; 0 if there is nothing to compare with."""
        self._after = b""
        self._after_bytes = 0

    def remember(self, head: bytes) -> None:
        """Take ``head``, validated, without the empty line at its end, as the one to compare with.

        It must have exactly one Content-Length.
        """
        at = head.lower().find(_LENGTH_FIELD) + len(_LENGTH_FIELD)
        digits, line_end, more = head[at:].lstrip().partition(b"\r\n")
        self._after = line_end + more
        self._after_bytes = len(self._after)
        # A value with trailing blanks could not be compared digit by digit below.
        self._before = head[: len(head) - len(digits) - self._after_bytes] if digits.isdigit() else b""
        self._before_bytes = len(self._before)

    def forget(self) -> None:
        """Match nothing until the next ``remember``."""
        self._before_bytes = 0

    def length_of(self, head: bytes) -> int:
        """The Content-Length of a head without its empty line; -1 if it does not repeat the remembered one."""
        start = self._before_bytes
        # Comparing a copy is quicker than ``startswith``.
        if not start or head[:start] != self._before:
            return -1
        end = len(head) - self._after_bytes
        if head[end:] != self._after:
            return -1
        digits = head[start:end]  # Empty where the two overlap, which is no length.
        length = _cached_lengths.get(digits)
        return _read_length(digits) if length is None else length


def _read_length(digits: bytes) -> int:
    if len(digits) > _MAX_LENGTH_DIGITS or not digits.isdigit():
        return -1
    length = int(digits)
    if len(_cached_lengths) < _MAX_CACHED_LENGTHS:
        _cached_lengths[digits] = length
    return length
