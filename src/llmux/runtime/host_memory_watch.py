"""Notices when the machine itself gets short of host memory while models sleep in it."""

import asyncio
from collections.abc import Callable

import structlog

from llmux.core.events import HostMemoryShort
from llmux.core.scheduler import Scheduler
from llmux.runtime.controller import Controller

log = structlog.get_logger("llmux.host_memory")

LOOK_SECONDS = 2.0
"""Between two looks: an engine takes about as long to give back what it holds."""


class HostMemoryWatch:
    """Looks at the memory that is available while any model holds some asleep, and tells the core what is missing."""

    def __init__(
        self, scheduler: Scheduler, controller: Controller, reserve_mib: int, available_mib: Callable[[], int]
    ) -> None:
        """``reserve_mib``: what should be available. ``available_mib`` is called in a thread."""
        self._scheduler = scheduler
        self._controller = controller
        self._reserve_mib = reserve_mib
        self._available_mib = available_mib

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Look once, if anything sleeps."""
        if not self._scheduler.host_mib:
            return
        available_mib = await asyncio.to_thread(self._available_mib)
        missing_mib = self._reserve_mib - available_mib
        if missing_mib > 0:
            log.warning(
                "host memory is short: sleeping models are to give some back",
                available_mib=available_mib,
                reserve_mib=self._reserve_mib,
                held_mib=self._scheduler.host_mib,
            )
            self._controller.feed(HostMemoryShort(missing_mib))
