"""Programs found not to listen on Unix sockets."""

import shutil
from pathlib import Path


class SocketlessPrograms:
    """Remembers programs as they are now: one that is replaced, as by an upgrade, is tried anew."""

    def __init__(self) -> None:
        self._found: set[tuple[str, int]] = set()

    def __contains__(self, program: str) -> bool:
        return _stamp(program) in self._found

    def add(self, program: str) -> None:
        self._found.add(_stamp(program))


def _stamp(program: str) -> tuple[str, int]:
    """Its path and the time of its last change; reads the disk."""
    path = Path(shutil.which(program) or program)
    try:
        return str(path), path.stat().st_mtime_ns
    except OSError:
        return str(path), 0
