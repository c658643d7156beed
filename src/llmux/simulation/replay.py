"""Sends a trace to a running llmux, and reads from its metrics how often it switched and how long that took."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from llmux.errors import LlmuxError
from llmux.simulation.client import LoadGenerator
from llmux.simulation.figures import RunFigures, run_figures
from llmux.simulation.residency import Shares
from llmux.simulation.traffic import Ending, RequestOutcome, TrafficRequest

METRICS_PATH = "/metrics"
METRICS_TIMEOUT_SECONDS = 30.0
CLIENTS_MAX = 10_000
"""Requests open at a time; more would exhaust the ports of one client machine."""
SILENCE_SECONDS_MAX = 3600.0
"""A response without a byte for this long is given up."""


class NotObservable(LlmuxError):
    """The address does not serve llmux's metrics."""


@dataclass(frozen=True, slots=True)
class SwitchCounts:
    """Switches of a running llmux and their times, added up since it was started."""

    by_model: Counter[str] = field(default_factory=Counter)
    """Switches to each model."""
    evictions: int = 0
    """Switches for which another model had to leave."""
    draining_seconds: float = 0.0
    leaving_seconds: float = 0.0
    waking_seconds: float = 0.0
    canary_seconds: float = 0.0
    """The part of waking in which canaries were asked, which includes the recompute of frozen requests."""

    def since(self, before: "SwitchCounts") -> "SwitchCounts":
        return SwitchCounts(
            self.by_model - before.by_model,
            self.evictions - before.evictions,
            max(0.0, self.draining_seconds - before.draining_seconds),
            max(0.0, self.leaving_seconds - before.leaving_seconds),
            max(0.0, self.waking_seconds - before.waking_seconds),
            max(0.0, self.canary_seconds - before.canary_seconds),
        )

    @property
    def mean_costs(self) -> str | None:
        """The mean duration of a switch as a value for ``--costs``; None if no model had to leave."""
        return self._costs(self.waking_seconds)

    def mean_costs_without_recompute(self, canary_seconds: float) -> str | None:
        """The same if every canary had been answered in ``canary_seconds``, without a recompute before it."""
        return self._costs(self.waking_seconds - self.canary_seconds + canary_seconds * self.by_model.total())

    def _costs(self, waking_seconds: float) -> str | None:
        if self.evictions <= 0:
            return None
        evict, wake = self.leaving_seconds / self.evictions, waking_seconds / self.by_model.total()
        return f"evict={evict:.3f},wake={wake:.3f}"


async def read_switches(session: aiohttp.ClientSession) -> SwitchCounts:
    """Read the counts from llmux's metrics; raises ``NotObservable``."""
    try:
        async with session.get(METRICS_PATH, timeout=aiohttp.ClientTimeout(total=METRICS_TIMEOUT_SECONDS)) as response:
            text = await response.text()
            if response.status != 200:
                raise NotObservable(f"{response.url} answers {response.status}: is this the main port of llmux?")
        return parse_switches(text)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise NotObservable(f"no metrics from llmux ({error}): is it running, and is this its main port?") from None
    except ValueError:
        raise NotObservable(f"what {METRICS_PATH} answers are not the metrics of llmux") from None


def parse_switches(text: str) -> SwitchCounts:
    """The counts in a scrape; raises ``ValueError`` if it is not llmux's."""
    by_model: Counter[str] = Counter()
    evictions = 0
    phases: Counter[str] = Counter()
    canary_seconds = 0.0
    names = set()
    for family in text_string_to_metric_families(text):
        names.add(family.name)
        for sample in family.samples:
            if sample.name == "llmux_switches_total":
                by_model[sample.labels["to"]] += int(sample.value)
                evictions += int(sample.value) if sample.labels["from"] else 0
            elif sample.name == "llmux_switch_phase_seconds_sum":
                phases[sample.labels["phase"]] += sample.value  # type: ignore[assignment]
            elif sample.name == "llmux_canary_seconds_total":
                canary_seconds += sample.value
    if "llmux_switches" not in names:
        raise ValueError("no llmux_switches")
    return SwitchCounts(by_model, evictions, phases["drain"], phases["sleep"], phases["wake"], canary_seconds)


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of replaying a trace."""

    outcomes: Sequence[RequestOutcome]
    switches: SwitchCounts
    seconds: float
    """From the beginning to the end of the last request."""
    late_seconds: float
    """How far behind its time the most delayed request was sent."""
    interrupted: bool

    def problems(self) -> list[tuple[str, int]]:
        """Why requests were not served, the most frequent reasons first."""
        return Counter(outcome.problem for outcome in self.outcomes if outcome.problem).most_common()

    def figures(self, name: str) -> RunFigures:
        """The same figures as those of a simulation."""
        return run_figures(name, self.outcomes, self.switches.by_model, self._share)

    def _share(self, model: str | None) -> Shares | None:
        """Estimated from the metrics and the outcomes, as the history of a running llmux is too short for a replay."""
        if model is not None:
            return None  # The metrics of draining and leaving are not by model.
        whole = self.seconds or 1.0
        switching = min(1.0, (self.switches.leaving_seconds + self.switches.waking_seconds) / whole)
        draining = min(1.0 - switching, self.switches.draining_seconds / whole)
        busy = covered((outcome.admitted_at, outcome.ended_at) for outcome in self.outcomes) / whole
        serving = min(1.0 - switching - draining, max(0.0, busy - draining))
        return Shares(switching, draining, serving, 1.0 - switching - draining - serving)


def covered(spans: Iterable[tuple[float | None, float | None]]) -> float:
    """Seconds that lie within at least one span; spans without a begin or an end do not count."""
    known = sorted((begin, end) for begin, end in spans if begin is not None and end is not None)
    seconds, reached = 0.0, float("-inf")
    for begin, end in known:
        seconds += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return seconds


async def replay(
    url: str,
    requests: Sequence[TrafficRequest],
    *,
    speed: float = 1.0,
    api_key: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Replayed:
    """Send all requests and wait for their answers; ``speed`` 2 sends twice as fast as recorded.

    A cancellation ends it early with the outcomes so far. Raises ``NotObservable`` if there is no llmux.
    """
    generator = LoadGenerator(requests, clients_max=CLIENTS_MAX, speed=speed, progress=progress)
    async with aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS_MAX),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
    ) as session:
        before = await read_switches(session)
        interrupted = False
        try:
            await generator.run(session)
        except asyncio.CancelledError:
            interrupted = True
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        switches = (await read_switches(session)).since(before)
    ended = [outcome for outcome in generator.outcomes if outcome.ending is not Ending.CUT_SHORT]
    ended.sort(key=lambda outcome: outcome.arrived_at)
    seconds = max((outcome.ended_at or 0.0 for outcome in ended), default=0.0)
    return Replayed(ended, switches, seconds, generator.late_seconds, interrupted)
