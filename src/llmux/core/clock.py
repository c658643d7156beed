"""The core's time: given with each event, never read from the machine."""

from llmux.core.identifiers import Seconds


class Clock:
    """The time of the event that is being handled.

    The scheduler sets ``now`` once at each of its entry points; everything in the core reads it here, so that one event
    is handled at one time. Times are on the caller's monotonic clock and never go back.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: Seconds = 0.0
