"""Events and lines of output that wait to be sent to llmux: in order, bounded, and rate-limited."""

import json
import os
from collections import deque
from typing import Any

PENDING_BYTES = 1_048_576
"""For lines of output. Beyond it the oldest are dropped, since the engine must never wait for llmux."""
LINE_OVERHEAD_BYTES = 128
"""What a line takes in memory beside its text, so that empty lines are bounded too."""
BATCH_BYTES = 65_536
BATCH_INTERVAL_SECONDS = 0.02
"""Between two batches: an engine that prints a lot must not take llmux's event loop from the requests."""


class Outbox:
    """The queue of everything that is to be sent to llmux."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.unsent = b""
        self.items: deque[tuple[str, bytes]] = deque()
        """A stream's name and a line of it, or an empty name and an encoded event."""
        self.pending_bytes = 0
        self.pending_events = 0
        self.dropped_lines = 0
        self.next_batch_at = 0.0
        self.is_muted = False

    def mute(self) -> None:
        """Discard everything, now and from now on: llmux does not read any more."""
        self.is_muted = True
        self.items.clear()
        self.unsent = b""
        self.pending_events = self.dropped_lines = 0

    def add_event(self, event: str, **facts: Any) -> None:
        if self.is_muted:
            return
        self.items.append(("", encode(event, **facts)))
        self.pending_events += 1

    def add_line(self, stream: str, line: bytes) -> None:
        if self.is_muted:
            return
        self.items.append((stream, line))
        self.pending_bytes += len(line) + LINE_OVERHEAD_BYTES
        while self.pending_bytes > PENDING_BYTES:
            oldest, content = self._next()
            if oldest:
                self.dropped_lines += 1
            else:
                self.unsent += content

    def wait_seconds(self, now: float) -> float | None:
        """Seconds until there is something to write; None if there is nothing."""
        if self.unsent or self.pending_events:
            return 0.0
        return max(0.0, self.next_batch_at - now) if self.items else None

    def flush(self, now: float) -> bool:
        """Write what the socket takes; returns False if llmux is gone."""
        while self.wait_seconds(now) == 0.0:
            if not self.unsent:
                self.unsent = self._next_message(now)
            try:
                written = os.write(self.descriptor, self.unsent)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self.unsent = self.unsent[written:]
        return True

    def _next(self) -> tuple[str, bytes]:
        stream, content = self.items.popleft()
        if stream:
            self.pending_bytes -= len(content) + LINE_OVERHEAD_BYTES
        else:
            self.pending_events -= 1
        return stream, content

    def _next_message(self, now: float) -> bytes:
        if self.dropped_lines:
            dropped, self.dropped_lines = self.dropped_lines, 0
            return encode("dropped", lines=dropped)
        stream, content = self._next()
        if not stream:
            return content
        lines = [content]
        batch_bytes = len(content) + LINE_OVERHEAD_BYTES
        while self.items and self.items[0][0] == stream and batch_bytes < BATCH_BYTES:
            lines.append(self._next()[1])
            batch_bytes += len(lines[-1]) + LINE_OVERHEAD_BYTES
        self.next_batch_at = now + BATCH_INTERVAL_SECONDS
        return encode("output", stream=stream, lines=[line.decode(errors="replace") for line in lines])


def encode(event: str, **facts: Any) -> bytes:
    """An event as a line of JSON."""
    return json.dumps({"event": event, **facts}).encode() + b"\n"
