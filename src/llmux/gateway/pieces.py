"""Working through large bodies in a thread, a piece at a time, without holding up the event loop.

What is written in C keeps Python's lock for as long as it works, a third of a second for parsing 100 MB, and in a
thread as well as anywhere: meanwhile no client is served.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PIECE_BYTES = 64 * 1024
"""Takes 0.03 ms to search and at worst 2 ms to match: so long the lock is held."""
_PAUSE_SECONDS = 0.0002
"""Long enough for the event loop's thread to wake up and take the lock."""


_thread = threading.local()
"""Has ``give_way`` where ``TakingTurns`` runs something."""


def pause() -> None:
    """Give the lock to the event loop's thread, and other threads their turn; to be called after each piece."""
    time.sleep(_PAUSE_SECONDS)
    give_way: Callable[[], None] | None = getattr(_thread, "give_way", None)
    if give_way is not None:
        give_way()


class TakingTurns:
    """Lets only so many threads work at a time, and each of them a piece at a time.

    After each piece it is the turn of the thread that has waited longest, so that none waits for the whole of what
    others do, however large that is.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: deque[threading.Lock] = deque()
        """One lock for each thread that waits, released when it may go on."""
        self._lock = threading.Lock()

    def run(self, work: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Call ``work`` in this thread, when it is its turn; it has others' turns in between by calling ``pause``."""
        self._enter()
        _thread.give_way = self._give_way
        try:
            return work(*arguments, **options)
        finally:
            del _thread.give_way
            self._leave()

    def _give_way(self) -> None:
        if self._waiting:
            self._leave()
            self._enter()

    def _enter(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def _leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


def replace_at(body: bytes, places: Sequence[tuple[int, int]], value: bytes) -> bytes:
    """The body with what stands in the places, each from its begin to its end, replaced by ``value``."""
    return edit(body, [(start, end, value) for start, end in places])


def edit(body: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The body with each of these places, which come in its order, replaced by its own text."""
    parts: list[bytes | memoryview] = []
    done = 0
    for start, end, text in edits:
        parts += [memoryview(body)[done:start], text]
        done = end
    return b"".join((*parts, memoryview(body)[done:]))
