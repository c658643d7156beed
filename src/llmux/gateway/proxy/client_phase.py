"""The phases of a client's connection."""

from enum import Enum, auto


class Phase(Enum):
    """What the connection does with the data that it receives."""

    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    """A request is complete and its answer is not, or the client has not read enough of it: data is kept for later."""
    LINGERING = auto()
    """A request was refused before it was complete: the rest of it is discarded."""
    OVER = auto()
    """Closed, closing or handed over: data is discarded."""
