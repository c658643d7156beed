"""Imports that are made while llmux listens already."""

import asyncio
from collections.abc import Awaitable, Callable

from llmux.os_errors import is_own_shortage

SHORTAGE_POLL_SECONDS = 0.05


async def until_imported(load: Callable[[], Awaitable[object]]) -> None:
    """Call ``load`` until it succeeds, where it fails because clients have taken all file descriptors meanwhile."""
    while True:
        try:
            await load()
            return
        except OSError as error:
            if not is_own_shortage(error):
                raise
        await asyncio.sleep(SHORTAGE_POLL_SECONDS)
