"""The firewall tables by which criu silences the connections of a dumped engine.

A dump makes one whether there are connections or not, and a restore removes it. It stays where an image is dropped, or
where criu was killed, and a connection of the same addresses and ports would then hang for ever.
"""

import errno
import re
from collections.abc import Iterable
from pathlib import Path

from llmux.checkpoints import netlink

PREFIX = "CRIU-"
RUN = re.compile(r"CRIU run id = ([0-9a-f-]+)")
LOG_HEAD_CHARACTERS = 4096


def list_tables() -> frozenset[str]:
    """The names of criu's tables; none where the kernel has no nftables, or we may not ask."""
    try:
        return frozenset(name for name in netlink.list_tables() if name.startswith(PREFIX))
    except OSError:
        return frozenset()


def find_tables(log: Path) -> list[str]:
    """The tables of the dump that wrote the log: named by the number of its run, as far as a name may go."""
    try:
        with log.open(errors="replace") as file:
            found = RUN.search(file.read(LOG_HEAD_CHARACTERS))
    except OSError:
        return []
    return sorted(name for name in list_tables() if found and found[1].startswith(name.removeprefix(PREFIX)))


def remove_tables(names: Iterable[str]) -> None:
    """Remove tables, as far as they are there; raises OSError."""
    for name in names:
        try:
            netlink.delete_table(name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
