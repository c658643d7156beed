"""Images that an llmux began and was killed over: found by the next one, with what their criu has left elsewhere."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from llmux.checkpoints import firewall, shared_memory

END = ".new"
"""Of the name of a directory in which an image is being made."""
NOTE = "begun.json"
CLOCK_SECONDS = 1.0
"""Between the last line of criu's log and the last file that it made."""


def note_beginning(new: Path, remapped: frozenset[str], own: Iterable[str]) -> None:
    """Note what criu had left before in /dev/shm, and what there is the engine's own; raises OSError."""
    (new / NOTE).write_text(json.dumps({"remapped": sorted(remapped), "own": sorted(own)}))


def forget_beginning(new: Path) -> None:
    """The image will be finished after all."""
    (new / NOTE).unlink(missing_ok=True)


def clear_all(top: Path) -> None:
    """Clear away every unfinished image; nobody may be making one meanwhile. Raises OSError."""
    for folder, directories, _ in os.walk(top):
        for name in directories.copy():
            if name.endswith(END):
                directories.remove(name)
                clear(Path(folder) / name)


def clear(new: Path) -> None:
    """Remove an unfinished image and what its criu has left in /dev/shm and in the firewall; raises OSError."""
    if not new.is_symlink() and new.is_dir():
        firewall.remove_tables(firewall.find_tables(new / "dump.log"))
        shared_memory.remove_unused(_find_shared(new))
        shutil.rmtree(new, ignore_errors=True)


def _find_shared(new: Path) -> list[str]:
    """What the engine had itself, and of criu's what was not there before and was made while it was at work."""
    try:
        note = json.loads((new / NOTE).read_text())
        before, own = set(note["remapped"]), list(note["own"])
        began = (new / NOTE).stat().st_mtime
        ended = (new / "dump.log").stat().st_mtime
    except (OSError, ValueError, LookupError, TypeError):
        return []
    changes = {
        name: (shared_memory.DIRECTORY / name).stat().st_ctime for name in shared_memory.list_remapped() - before
    }
    return own + [name for name, at in changes.items() if began - CLOCK_SECONDS <= at <= ended + CLOCK_SECONDS]
