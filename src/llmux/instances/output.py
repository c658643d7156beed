"""An engine's output: lines cleaned for the log, and the last ones kept for error messages."""

import re
from collections import deque

TAIL_LINES = 50
TAIL_LINE_CHARACTERS = 2_000
HEALTH_ASKED = '"GET /health HTTP/1.1" 200'
"""In a line of uvicorn's access log: asked every minute, it would soon be all that is left."""
# From ESC to the next letter, or to the end of a line that was cut off.
ESCAPE_SEQUENCE = re.compile("\x1b[^A-Za-z]*[A-Za-z]?")


def clean_line(line: str) -> str:
    """The line as a terminal shows it in the end: without escape sequences, and a progress bar in its last state."""
    if "\x1b" in line:
        line = ESCAPE_SEQUENCE.sub("", line)
    if "\r" in line:
        line = line.rstrip("\r").rpartition("\r")[2]
    return line


def shorten(text: str, limit_characters: int) -> str:
    """``text``, truncated to the limit with a note of how much was cut off."""
    missing = len(text) - limit_characters
    return text if missing <= 0 else f"{text[:limit_characters]}… ({missing} more characters)"


class OutputTail:
    """The last lines, each shortened, without blank ones and without those that only say that llmux asked /health."""

    def __init__(self, lines: int = TAIL_LINES) -> None:
        self._lines: deque[str] = deque(maxlen=lines)

    def add(self, line: str) -> None:
        if line and not line.isspace() and HEALTH_ASKED not in line:
            self._lines.append(shorten(line, TAIL_LINE_CHARACTERS))

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._lines)
