"""When a connection is read from: always, unless there is a reason not to."""

import asyncio
from enum import Enum, auto


class PauseReason(Enum):
    """Why a connection is not read from."""

    CLIENT_FULL = auto()
    """Engine side: the client reads its answer more slowly than the engine writes it."""
    HELD_UNTIL_THAW = auto()
    """Engine side: the engine is being woken, and until its canary has passed nothing it sends may be relayed."""
    CHECKING_HEALTH = auto()
    """Engine side: the engine answered with a 5xx status, and whether it is dying is being found out."""
    BACKLOG_FULL = auto()
    """Client side: more than enough pipelined requests are waiting for their turn."""
    OTHERS_TURN = auto()
    """Client side: enough of what it sent has been worked off for now; other connections are served in between."""


class FlowControl:
    """Reads from one transport while no reason to pause is in force.

    The reasons are independent: each is set and lifted by whoever knows of it, and need not know of the others. While
    reading is paused, a close by the peer goes unnoticed.
    """

    __slots__ = ("_transport", "reasons")

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.reasons: set[PauseReason] = set()
        """Those in force; for others to read only."""

    def attach(self, transport: asyncio.Transport) -> None:
        """Control the reading from ``transport``, which has just been connected and is being read from."""
        self._transport = transport
        if self.reasons:
            transport.pause_reading()

    def pause(self, reason: PauseReason) -> None:
        """Stop reading until this reason, and every other, has been lifted."""
        transport = self._transport
        # asyncio's and uvloop's transports refuse both calls once they are closing.
        if not self.reasons and transport is not None and not transport.is_closing():
            transport.pause_reading()
        self.reasons.add(reason)

    def resume(self, reason: PauseReason) -> None:
        """Lift a reason, if it is in force; reading goes on if it was the last."""
        if reason in self.reasons:
            self.reasons.remove(reason)
            if not self.reasons:
                self._resume_reading()

    def clear(self) -> None:
        """Lift every reason: the connection's next request begins with none."""
        if self.reasons:
            self.reasons.clear()
            self._resume_reading()

    def _resume_reading(self) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()
