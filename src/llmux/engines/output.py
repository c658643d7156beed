"""What an engine prints: made readable for a log, and its last lines kept for error messages."""

import re
from collections import deque

TAIL_LINES = 50
TAIL_LINE_CHARACTERS = 2_000
ESCAPE_SEQUENCE = re.compile("\x1b[^A-Za-z]*[A-Za-z]?")


def clean_line(line: str) -> str:
    """One line as a terminal would show it in the end: no escape sequences, and of a progress bar its last state.

    An escape sequence goes from ESC to the next letter.
    """
    if "\x1b" in line:
        line = ESCAPE_SEQUENCE.sub("", line)
    if "\r" in line:
        line = line.rstrip("\r").rpartition("\r")[2]
    return line


def shorten(text: str, limit_characters: int) -> str:
    """``text``, or so much of its beginning as fits with a mark that says how much is missing."""
    missing = len(text) - limit_characters
    return text if missing <= 0 else f"{text[:limit_characters]}… ({missing} more characters)"


class OutputTail:
    """The last lines that are not blank, each shortened."""

    def __init__(self, lines: int = TAIL_LINES) -> None:
        self._lines: deque[str] = deque(maxlen=lines)

    def add(self, line: str) -> None:
        if line and not line.isspace():
            self._lines.append(shorten(line, TAIL_LINE_CHARACTERS))

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._lines)
