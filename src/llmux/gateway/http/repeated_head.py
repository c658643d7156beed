"""Recognising a head that repeats an earlier one in everything but its Content-Length."""

_LENGTH_FIELD = b"\r\ncontent-length:"
_MAX_LENGTH_DIGITS = 15
"""A longer number is left to the full parser, which decides whether it is a length at all."""


class RepeatedHead:
    """One head, cut at the digits of its Content-Length.

    Clients and engines repeat themselves: successive heads of one peer usually differ in their length only, and a head
    that equals one already validated need not be parsed again.
    """

    __slots__ = ("_after", "_before")

    def __init__(self) -> None:
        self._before = b""
        self._after = b""

    def remember(self, head: bytes) -> None:
        """Take ``head``, whole and validated, as the one to compare with; it must have exactly one Content-Length."""
        at = head.lower().find(_LENGTH_FIELD) + len(_LENGTH_FIELD)
        end = head.find(b"\r\n", at)
        start = end - len(head[at:end].lstrip())
        # A value with trailing blanks could not be compared digit by digit below.
        self._before = head[:start] if head[start:end].isdigit() else b""
        self._after = head[end:]

    def forget(self) -> None:
        """Match nothing until the next ``remember``."""
        self._before = b""

    def length_of(self, head: bytes) -> int:
        """The Content-Length of a whole head that repeats the remembered one; -1 if it does not."""
        before = self._before
        if not before or not head.startswith(before):
            return -1
        end = head.find(b"\r\n", len(before))
        digits = head[len(before) : end]
        if head[end:] != self._after or not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
            return -1
        return int(digits)
