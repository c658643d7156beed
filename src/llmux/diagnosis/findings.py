"""What a check finds."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    UNKNOWN = "unknown"
    """It cannot be checked here."""
    WARNING = "warning"
    """llmux works, but not as well or not in all cases."""
    ERROR = "error"
    """What is configured cannot work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    level: Level
    what: str
    """The thing that was looked at, in a few words."""
    found: str
    remedy: str = ""
    """What to do about it; empty if nothing is to be done."""


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, what, found)


def unknown(what: str, found: str, remedy: str = "") -> Finding:
    """It cannot be checked here; ``found`` says why."""
    return Finding(Level.UNKNOWN, what, found, remedy)


def warning(what: str, found: str, remedy: str) -> Finding:
    """It may go wrong."""
    return Finding(Level.WARNING, what, found, remedy)


def error(what: str, found: str, remedy: str) -> Finding:
    """It will go wrong."""
    return Finding(Level.ERROR, what, found, remedy)
