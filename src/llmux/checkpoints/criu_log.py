"""What criu's log says about a failure: the one line that names the cause."""

import re
from pathlib import Path

NOISE = re.compile(r"RLIMIT_NOFILE")
"""Printed as an error without CAP_SYS_RESOURCE, and harmless."""
DERIVED = re.compile(
    r"Dumping FAILED|Restoring FAILED|Can't open vma|Unable to open fd=|exited, status=|killed by signal"
    r"|Collect mappings|Dump files|bfd: Error"
)
"""Consequences of an error that stands further up."""
PREFIX = re.compile(r"^\([\d.]+\)\s*(\d+:\s*)?")
TAIL_CHARACTERS = 300


def find_error(text: str) -> str | None:
    """The first error that is a cause, or the first of all; None where there is none."""
    errors = [line for line in text.splitlines() if "Error (" in line and not NOISE.search(line)]
    causes = [line for line in errors if not DERIVED.search(line)] or errors
    return PREFIX.sub("", causes[0]).strip() if causes else None


def find_reason(text: str) -> str:
    """The error, or the end of the text where it names none."""
    return find_error(text) or text.strip()[-TAIL_CHARACTERS:] or "criu said nothing"


def read_error(log: Path) -> str | None:
    """The error in a log file, where there is one."""
    try:
        return find_error(log.read_text(errors="replace"))
    except OSError:
        return None
