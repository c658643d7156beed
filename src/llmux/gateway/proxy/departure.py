"""Telling a client that only sends no more from one that has left: both look alike, and one wants its answer."""

import asyncio
from socket import SO_ERROR, SOL_SOCKET

_LOOKS = 4
"""About a second apart. The reset of a client that has left takes a round trip."""


class Departure:
    """What is known of a client that has ended its sending side, and so sends no more.

    Whatever is written to one that has left makes its host answer with a reset. By itself that would be noticed only
    when still more is written, which may be much later.
    """

    __slots__ = ("_looks_left",)

    def __init__(self) -> None:
        self._looks_left = 0

    def in_doubt(self) -> bool:
        """Whether the client may have left, and should be looked at again."""
        return self._looks_left > 0

    def probed(self) -> None:
        """Something has just been written to see whether the client is there."""
        self._looks_left = _LOOKS

    def look(self, transport: asyncio.Transport) -> bool:
        """Whether the client is now known to have left."""
        self._looks_left -= 1
        socket = transport.get_extra_info("socket")
        return socket is not None and socket.getsockopt(SOL_SOCKET, SO_ERROR) != 0
