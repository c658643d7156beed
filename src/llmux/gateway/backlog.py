"""What a client has sent ahead of its answers."""

import asyncio


class Backlog:
    """Keeps it, and does not read from the client any more once it is more than ``limit_bytes``."""

    __slots__ = ("_is_paused", "_limit_bytes", "data")

    def __init__(self, limit_bytes: int) -> None:
        self.data = bytearray()
        """Empty when there is nothing to take."""
        self._is_paused = False
        self._limit_bytes = limit_bytes

    def keep(self, data: bytes, transport: asyncio.Transport | None) -> None:
        """Add to it."""
        self.data += data
        if len(self.data) > self._limit_bytes and not self._is_paused and transport is not None:
            self._is_paused = True
            transport.pause_reading()

    def take(self, transport: asyncio.Transport | None) -> bytes:
        """All of it; the client is read from again."""
        if self._is_paused and transport is not None:
            self._is_paused = False
            transport.resume_reading()
        data = bytes(self.data)
        self.data.clear()
        return data
