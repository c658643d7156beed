"""The firewall tables by which criu silences the connections of a dumped engine.

A restore removes them. They stay where an image is dropped, or where criu was killed, and a connection of the same
addresses and ports would then hang for ever.
"""

import errno
from collections.abc import Iterable

from llmux.checkpoints import netlink

PREFIX = "CRIU-"


def list_tables() -> frozenset[str]:
    """The names of criu's tables; none where the kernel has no nftables, or we may not ask."""
    try:
        return frozenset(name for name in netlink.list_tables() if name.startswith(PREFIX))
    except OSError:
        return frozenset()


def remove_tables(names: Iterable[str]) -> None:
    """Remove tables, as far as they are there; raises OSError."""
    for name in names:
        try:
            netlink.delete_table(name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
