"""Where a client's connection is between one request and the next."""

from enum import Enum, auto
from typing import Final


class ClientPhase(Enum):
    """What a client's connection does with the bytes that come."""

    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    LINGERING = auto()
    """Refused in the middle of a request: the rest of it is read and thrown away."""
    OVER = auto()


# Looking up a member of an Enum costs more than the comparison it is for, and this is the hot path.
HEAD: Final = ClientPhase.HEAD
BODY: Final = ClientPhase.BODY
ANSWERING: Final = ClientPhase.ANSWERING
LINGERING: Final = ClientPhase.LINGERING
OVER: Final = ClientPhase.OVER
