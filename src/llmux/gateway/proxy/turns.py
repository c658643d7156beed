"""Taking turns: what a connection puts off so that the others are served in between."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

_TURN_SECONDS = 0.001
"""How long the connections that have put something off may work in one iteration of the event loop."""

STEPS_PER_TURN: Final = 500
"""How much of what a client sends is worked off before others are served; a step takes about a microsecond."""
_STEPS_PER_ITERATION: Final = 2_000
"""Of all connections together, beside what was put off: many at once must not add up."""
STEPS_OF_A_HEAD: Final = 50
STEPS_OF_A_PIECE: Final = 5
HEAD_BYTES_PER_STEP: Final = 64
_JSON_BYTES_PER_STEP = 512
_FORM_BYTES_PER_STEP = 4
"""A form may have a part in every 50 bytes, which take some 10 microseconds."""


def steps_of_reading(size_bytes: int, *, is_form: bool) -> int:
    """What it takes to find the model in a body of this size."""
    return size_bytes // (_FORM_BYTES_PER_STEP if is_form else _JSON_BYTES_PER_STEP)


class Turns:
    """Runs what was put off, in order and a little at a time, in later iterations of the event loop.

    Without this, whoever sends most would be served most: a ready socket is read many times in one iteration, and
    everything read would be worked off before any other connection has its turn.
    """

    __slots__ = ("_call_soon", "_scheduled", "_waiting", "steps_left")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """``call_soon`` is the event loop's."""
        self._call_soon = call_soon
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self.steps_left = _STEPS_PER_ITERATION
        """Where none are, whatever is not done yet is to be put off."""

    def spend(self, steps: int) -> None:
        """Count work that was done at once."""
        self.steps_left -= steps
        if self.steps_left <= 0:
            self._schedule()

    def put_off(self, work: Callable[[], None]) -> None:
        """Run ``work``, which must be short, in a later iteration of the loop."""
        self._waiting.append(work)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        self.steps_left = _STEPS_PER_ITERATION
        until = time.perf_counter() + _TURN_SECONDS
        try:
            # What is put off again meanwhile waits for the next iteration.
            for _ in range(len(self._waiting)):
                self._waiting.popleft()()
                if time.perf_counter() >= until:
                    break
        finally:
            if self._waiting:
                self._schedule()
