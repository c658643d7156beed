"""Sends a trace to a running llmux, each request at its time whatever has become of the others."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from llmux.simulation.replay.client import Heard, ask, body_of
from llmux.simulation.replay.switches import SwitchCounts, read_switches
from llmux.simulation.report.fate import Fate
from llmux.simulation.report.figures import RunFigures, figures_of
from llmux.simulation.report.starvation import starvation
from llmux.simulation.virtual.timeline import Shares
from llmux.simulation.workload.call import TracedCall

CLIENTS_MAX = 10_000
"""More do not ask at a time: the next one asks when another has its answer, and is late."""

SILENCE_SECONDS = 3600.0
"""An answer of which nothing comes for so long is given up."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a trace. ``late_seconds``: how far behind its time the latest request was sent."""

    heard: Sequence[Heard]
    switches: SwitchCounts
    seconds: float
    late_seconds: float
    interrupted: bool
    started_at: float

    def problems(self) -> list[tuple[str, int]]:
        """Why requests were not served, the most frequent reasons first."""
        return Counter(one.problem for one in self.heard if one.problem).most_common()

    def figures(self, name: str) -> RunFigures:
        """The same figures as a simulation's."""
        fates = [one.fate(self.started_at) for one in self.heard]
        own: dict[str, list[Fate]] = {}
        for fate in fates:
            own.setdefault(fate.model, []).append(fate)
        starved = {model: starvation(some) for model, some in own.items()}
        models = {
            model: figures_of(some, self.switches.by_model[model], self._shares(some, model), starved[model])
            for model, some in own.items()
        }
        count = self.switches.by_model.total()
        total = figures_of(fates, count, self._shares(fates, None), max(starved.values(), default=0.0))
        return RunFigures(name, total, models)

    def _shares(self, fates: Iterable[Fate], model: str | None) -> Shares | None:
        """How the GPU's time went; the metrics do not tell it for single models."""
        if model is not None:
            return None
        whole = self.seconds or 1.0
        switching = min(1.0, (self.switches.leaving_seconds + self.switches.coming_seconds) / whole)
        draining = min(1.0 - switching, self.switches.draining_seconds / whole)
        busy = covered((fate.admitted_at, fate.ended_at) for fate in fates) / whole
        serving = min(1.0 - switching - draining, max(0.0, busy - draining))
        return Shares(switching, draining, serving, 1.0 - switching - draining - serving)


def covered(spans: Iterable[tuple[float | None, float | None]]) -> float:
    """How many seconds lie within at least one of these spans; those without beginning or end do not count."""
    known = sorted((begin, end) for begin, end in spans if begin is not None and end is not None)
    seconds, reached = 0.0, float("-inf")
    for begin, end in known:
        seconds += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return seconds


class Replay:
    """One replay of some calls at ``url``; ``speed`` 2 sends twice as fast as the trace says."""

    def __init__(self, url: str, calls: Sequence[TracedCall], speed: float = 1.0, api_key: str | None = None) -> None:
        self._url = url
        self._calls = calls
        self._speed = speed
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._heard: list[Heard] = []
        self._late_seconds = 0.0
        self._places = asyncio.Semaphore(CLIENTS_MAX)

    async def run(self, progress: Callable[[float], None] = lambda _: None) -> Replayed:
        """Send everything and wait for all answers; a cancellation ends it early, with what has been heard until then.

        Raises ``NotObservable`` where there is no llmux.
        """
        loop = asyncio.get_running_loop()
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            self._url, connector=connector, timeout=timeout, headers=self._headers
        ) as session:
            before = await read_switches(session)
            started_at = loop.time()
            interrupted = False
            try:
                await self._send_all(session, started_at, progress)
            except asyncio.CancelledError:
                interrupted = True
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
            ended = [one for one in self._heard if one.ended_at is not None]
            seconds = max((one.ended_at or 0.0) for one in ended) - started_at if ended else 0.0
            switches = (await read_switches(session)).since(before)
            return Replayed(ended, switches, seconds, self._late_seconds, interrupted, started_at)

    async def _send_all(
        self, session: aiohttp.ClientSession, started_at: float, progress: Callable[[float], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as clients:
            for number, call in enumerate(self._calls):
                due_at = started_at + call.at_seconds / self._speed
                body = body_of(call, number)
                await asyncio.sleep(due_at - loop.time())
                await self._places.acquire()
                heard = Heard(call, loop.time())
                self._late_seconds = max(self._late_seconds, heard.sent_at - due_at)
                self._heard.append(heard)
                clients.create_task(self._ask(session, heard, body))
                progress(number + 1)

    async def _ask(self, session: aiohttp.ClientSession, heard: Heard, body: Mapping[str, object]) -> None:
        try:
            await ask(session, heard, body)
        finally:
            self._places.release()
