"""The scheduler's clock: the event loop's, without the time in which the process did not run."""

import asyncio
from typing import Final

import structlog

from llmux.core.identifiers import Seconds

log = structlog.get_logger("llmux.controller")

TICK_SECONDS = 0.5
STOPPED_SECONDS: Final = 3.0
"""So long without a look at the clock, which the loop takes at every tick, means that the process was stopped: work
that holds up the loop takes milliseconds, and a machine without time to spare adds some tenths of a second."""


class LoopClock:
    """Stands still while the process is stopped (SIGSTOP, a frozen cgroup, a paused virtual machine).

    Otherwise every deadline that falls into that time would have passed at once when the process goes on, and requests
    would time out to which nothing could be done meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Must be made on the loop, which it asks for a tick from time to time for as long as the loop runs."""
        self._loop = loop
        self._loop_time = loop.time
        self._seen_at = loop.time()
        self._left_out_seconds = 0.0
        self._tick()

    def now(self) -> Seconds:
        """The time, which never goes back."""
        # Here and not in the tick: after a stop, what clients have sent meanwhile may be handled before any timer.
        at = self._loop_time()
        if at - self._seen_at > STOPPED_SECONDS:
            self._leave_out(at - self._seen_at)
        self._seen_at = at
        return at - self._left_out_seconds

    def on_loop(self, at: Seconds) -> Seconds:
        """When, on the loop's clock, it will be that time, if the process is not stopped before."""
        return at + self._left_out_seconds

    def _leave_out(self, seconds: Seconds) -> None:
        self._left_out_seconds += seconds
        log.warning(
            "llmux did not run for a while: what was waited for is waited for longer", seconds=round(seconds, 3)
        )

    def _tick(self) -> None:
        self.now()
        self._loop.call_later(TICK_SECONDS, self._tick)
