"""Waiting that a cancellation does not cut short, for work that must not be left half done."""

import asyncio
from typing import Any


async def wait_uncancelled(future: asyncio.Future[Any], limit_seconds: float | None = None) -> None:
    """Wait until the future is done or the time is up; a cancellation meanwhile is raised only then.

    The future's exception is not raised.
    """
    loop = asyncio.get_running_loop()
    deadline = None if limit_seconds is None else loop.time() + limit_seconds
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        left_seconds = None if deadline is None else deadline - loop.time()
        if left_seconds is not None and left_seconds <= 0:
            break
        try:
            await asyncio.wait((future,), timeout=left_seconds)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
