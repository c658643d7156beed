"""Working through large bodies in a thread, a piece at a time, without holding up the event loop.

What is written in C keeps Python's lock for as long as it works, a third of a second for parsing 100 MB, and in a
thread as well as anywhere: meanwhile no client is served.
"""

import time
from collections.abc import Sequence

PIECE_BYTES = 64 * 1024
"""Takes 0.03 ms to search and at worst 2 ms to match: so long the lock is held."""
_PAUSE_SECONDS = 0.0002
"""Long enough for the event loop's thread to wake up and take the lock."""


def pause() -> None:
    """Give the lock to the event loop's thread; to be called after each piece."""
    time.sleep(_PAUSE_SECONDS)


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
