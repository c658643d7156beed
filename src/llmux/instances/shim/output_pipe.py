"""Divides one of the engine's output streams into lines."""

import os
from collections.abc import Callable

READ_BYTES = 65_536
LINE_BYTES = 16_384
"""The rest of a longer line is cut off."""
DRAIN_BYTES = 1_048_576
"""Read at most when the root has ended; more than a pipe's 64 KiB, since a descendant may still be writing."""


class OutputPipe:
    """Reads a pipe and passes on its lines, each without its end if it is too long."""

    def __init__(self, stream: str, descriptor: int, add_line: Callable[[str, bytes], None]) -> None:
        self.stream = stream
        self.descriptor = descriptor
        self.add_line = add_line
        self.partial = b""

    def read(self) -> int | None:
        """Read at most ``READ_BYTES``; returns their number, None if the pipe is empty now, 0 at its end."""
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        first, *others = data.split(b"\n")
        self._append(first)
        for line in others:
            self.add_line(self.stream, self.partial)
            self.partial = b""
            self._append(line)
        return len(data)

    def end_line(self) -> None:
        """Pass on the last line although its end has not been read."""
        if self.partial:
            self.add_line(self.stream, self.partial)
            self.partial = b""

    def drain(self) -> None:
        """Read what is in the pipe, and end the last line."""
        for _ in range(DRAIN_BYTES // READ_BYTES):
            if not self.read():
                break
        self.end_line()

    def _append(self, data: bytes) -> None:
        if len(self.partial) + len(data) > LINE_BYTES:
            # A progress bar rewrites itself after each carriage return: keep only its last state.
            data = (self.partial + data).rstrip(b"\r").rpartition(b"\r")[2]
            self.partial = b""
        self.partial += data[: LINE_BYTES - len(self.partial)]
