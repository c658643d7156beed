"""The clients together: each call is made at its time, whatever has become of the others."""

import asyncio
from collections.abc import Iterable

import aiohttp

from llmux.simulation.demo.client import perform
from llmux.simulation.demo.records import Call, Ending, Record

CLIENTS_MAX = 300
"""More do not ask at a time: the next one asks when another has its answer."""


class Traffic:
    """Runs the calls and keeps what became of them."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self._calls = calls
        self._places = asyncio.Semaphore(CLIENTS_MAX)
        self.records: list[Record] = []
        self.sent = 0
        self.all_sent = False

    @property
    def open(self) -> int:
        """How many clients are waiting or listening now."""
        return self.sent - len(self.records)

    def count(self, ending: Ending) -> int:
        """How many requests ended so."""
        return sum(record.ending is ending for record in self.records)

    async def run(self, url: str) -> None:
        """Make all calls and return when each has ended; cancelled, it cuts the open ones short."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as clients,
        ):
            for call in self._calls:
                await asyncio.sleep(started_at + call.at_seconds - loop.time())
                await self._places.acquire()
                clients.create_task(self._run_one(session, call))
            self.all_sent = True

    async def _run_one(self, session: aiohttp.ClientSession, call: Call) -> None:
        self.sent += 1
        record = Record(call, Ending.CUT_SHORT)
        try:
            record = await perform(session, call)
        finally:
            self.records.append(record)
            self._places.release()
