"""When a connection is read from: always, unless there is a reason not to."""

from enum import Enum, auto
from typing import Final, Protocol


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


_NONE: Final[frozenset[PauseReason]] = frozenset()
"""Shared by all connections: a set of its own, even an empty one, takes 216 bytes, and few ever have a reason."""


class Source(Protocol):
    """What is read from: a transport, or what stands before one."""

    def is_closing(self) -> bool:
        """Whether it may not be told anything any more."""

    def pause_reading(self) -> None:
        """Stop reading."""

    def resume_reading(self) -> None:
        """Read on."""


class FlowControl:
    """Reads from one source while no reason to pause is in force.

    The reasons are independent: each is set and lifted by whoever knows of it, and need not know of the others. While
    reading is paused, a close by the peer goes unnoticed.
    """

    __slots__ = ("_source", "reasons")

    def __init__(self) -> None:
        self._source: Source | None = None
        self.reasons = _NONE
        """Those in force; for others to read only."""

    def attach(self, source: Source) -> None:
        """Control the reading from ``source``, which has just been connected and is being read from."""
        self._source = source
        if self.reasons:
            source.pause_reading()

    def pause(self, reason: PauseReason) -> None:
        """Stop reading until this reason, and every other, has been lifted."""
        source = self._source
        # asyncio's and uvloop's transports refuse both calls once they are closing.
        if not self.reasons and source is not None and not source.is_closing():
            source.pause_reading()
        self.reasons |= {reason}

    def resume(self, reason: PauseReason) -> None:
        """Lift a reason, if it is in force; reading goes on if it was the last."""
        if reason in self.reasons:
            self.reasons = (self.reasons - {reason}) or _NONE
            if not self.reasons:
                self._resume_reading()

    def pause_while(self, condition: bool, reason: PauseReason) -> None:
        """Stop reading for this reason if the condition holds, and lift it if it does not."""
        if condition:
            self.pause(reason)
        else:
            self.resume(reason)

    def clear(self) -> None:
        """Lift every reason: the connection's next request begins with none."""
        if self.reasons:
            self.reasons = _NONE
            self._resume_reading()

    def _resume_reading(self) -> None:
        source = self._source
        if source is not None and not source.is_closing():
            source.resume_reading()
