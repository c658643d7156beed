"""nftables tables with which criu drops packets of a dumped engine's connections.

Every dump creates one, with or without connections, and the restore deletes it. If the image is deleted instead, or
criu is killed, the table stays, and a later connection with the same addresses and ports would hang.

The functions block, and run an event loop of their own: call them from a thread without one.
"""

import asyncio
import errno
import os
import re
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

PREFIX = "CRIU-"
RUN_ID = re.compile(r"CRIU run id = ([0-9a-f-]+)")
LOG_HEAD_CHARACTERS = 4096
"""The run id is in one of the log's first lines."""
NFPROTO_INET = 1
"""The family of criu's tables, from linux/netfilter.h."""
LIMIT_SECONDS = 10.0
"""The kernel answers within milliseconds. pyroute2 waits for ever for an answer that it does not expect."""


def list_tables() -> frozenset[str]:
    """Names of criu's tables; empty if the kernel has no nftables or refuses to list them."""
    try:
        return _run(_list_tables)
    except OSError:
        return frozenset()


def find_tables(log: Path) -> list[str]:
    """Tables of the dump that wrote this log.

    A table is named by the id of criu's run, truncated to what the kernel allows for a name.
    """
    try:
        with log.open(errors="replace") as file:
            found = RUN_ID.search(file.read(LOG_HEAD_CHARACTERS))
    except OSError:
        return []
    if found is None:
        return []
    return sorted(name for name in list_tables() if found[1].startswith(name.removeprefix(PREFIX)))


def remove_tables(names: Iterable[str]) -> None:
    """Delete those of the tables that exist; raises OSError."""
    if wanted := frozenset(names):
        _run(lambda nftables: _delete_tables(nftables, wanted))


async def _list_tables(nftables: Any) -> frozenset[str]:
    names = [table.get_attr("NFTA_TABLE_NAME") async for table in await nftables.get_tables()]
    return frozenset(name for name in names if name.startswith(PREFIX))


async def _delete_tables(nftables: Any, names: frozenset[str]) -> None:
    # Listing first reports missing rights. In answer to a deletion, the kernel attributes EPERM to the beginning of the
    # batch, and pyroute2 (0.9.7) would wait for an answer to the deletion itself.
    from pyroute2.netlink.exceptions import NetlinkError

    for name in sorted(names & await _list_tables(nftables)):
        try:
            await nftables.table("del", name=name)
        except NetlinkError as error:
            if error.code != errno.ENOENT:  # a restore may have deleted it in between
                raise


def _run(work: Callable[[Any], Coroutine[Any, Any, Result]]) -> Result:
    """Run the work with a connection to the kernel, on an event loop of its own; raises OSError."""
    # Imported on first use: it takes 0.2 s and 12 MiB.
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.nftables.main import AsyncNFTables

    async def connected() -> Result:
        async with asyncio.timeout(LIMIT_SECONDS), AsyncNFTables(nfgen_family=NFPROTO_INET) as nftables:
            return await work(nftables)

    try:
        # Whatever loop llmux serves with: uvloop has no netlink sockets.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(connected())
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
