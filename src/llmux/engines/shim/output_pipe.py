"""One of the engine's output streams: bytes in, whole lines out."""

import os
from collections.abc import Callable

READ_BYTES = 65_536
LINE_BYTES = 16_384
"""The rest of a longer line is cut off."""
LAST_WORDS_BYTES = 1_048_576


class OutputPipe:
    """One of the engine's output streams: bytes in, whole lines out, the end of an overlong one cut off."""

    def __init__(self, stream: str, descriptor: int, add_line: Callable[[str, bytes], None]) -> None:
        self.stream = stream
        self.descriptor = descriptor
        self.add_line = add_line
        self.partial = b""

    def read(self) -> int | None:
        """Take what the pipe has, at most ``READ_BYTES``; None where it has nothing now, 0 at its end."""
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
        """Hand over the last line though its end has not come."""
        if self.partial:
            self.add_line(self.stream, self.partial)
            self.partial = b""

    def read_last_words(self) -> None:
        """Take all that is there, though somebody else may go on writing, and end the line."""
        for _ in range(LAST_WORDS_BYTES // READ_BYTES):
            if not self.read():
                break
        self.end_line()

    def _append(self, data: bytes) -> None:
        if len(self.partial) + len(data) > LINE_BYTES:
            # A progress bar writes itself anew after each carriage return: its last state is what counts.
            data = (self.partial + data).rstrip(b"\r").rpartition(b"\r")[2]
            self.partial = b""
        self.partial += data[: LINE_BYTES - len(self.partial)]
