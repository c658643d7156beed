"""A request's head that comes in pieces."""


class PartialHead:
    """Collects the pieces; true while there are any."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces = bytearray()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def clear(self) -> None:
        """Forget the pieces."""
        self._pieces.clear()

    def join(self, data: bytes, limit_bytes: int) -> bytes:
        """Add a piece; returns everything once the head is complete (or too large), and nothing before.

        Empty lines in front of a head are passed over, as HTTP asks for.
        """
        pieces = self._pieces
        searched = max(0, len(pieces) - 3)
        pieces += data
        while pieces.startswith(b"\r\n"):
            del pieces[:2]
            searched = 0
        if pieces.find(b"\r\n\r\n", searched) < 0 and len(pieces) <= limit_bytes:
            return b""
        joined = bytes(pieces)
        pieces.clear()
        return joined
