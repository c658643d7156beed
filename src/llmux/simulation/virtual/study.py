"""Several contenders over one trace: the policies, the same with another drain, and a rule that is no policy."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmux.config.policy import PolicyType
from llmux.core.eviction import Drain
from llmux.core.identifiers import Seconds
from llmux.simulation.figures import LowerBound, RunFigures
from llmux.simulation.occupancy import GpuUse, LeaseTimes
from llmux.simulation.residency import Timeline
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.evict_when_idle import EvictWhenIdle
from llmux.simulation.virtual.run import RunResult
from llmux.simulation.virtual.scenario import Scenario, bound_of, run, simulate, summarise, use_of

EVICT_WHEN_IDLE = "evict_when_idle"


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy, or evict-when-idle where ``policy`` is None; ``drain`` takes the place of every model's, if given."""

    policy: PolicyType | None
    drain: Drain | None = None

    @classmethod
    def parse(cls, text: str) -> "Contender":
        """``adaptive``, ``fifo+freeze``, ``evict_when_idle``; raises ValueError."""
        name, separator, drain = text.partition("+")
        return cls(None if name == EVICT_WHEN_IDLE else PolicyType(name), Drain(drain) if separator else None)

    def __str__(self) -> str:
        name = EVICT_WHEN_IDLE if self.policy is None else self.policy.value
        return name if self.drain is None else f"{name}+{self.drain.value}"

    def play(
        self,
        scenario: Scenario,
        requests: Sequence[TrafficRequest],
        progress: Callable[[float], None] | None = None,
    ) -> RunResult:
        """Run the trace under this one."""
        settings = scenario.settings
        if self.drain is not None:
            models = {name: own.model_copy(update={"drain": self.drain}) for name, own in settings.models.items()}
            settings = settings.model_copy(update={"models": models})
            scenario = replace(scenario, settings=settings)
        if self.policy is not None:
            return simulate(scenario, requests, self.policy, progress)
        unbounded = scenario.scheduler(EvictWhenIdle(), max_wait_seconds=math.inf)
        return run(scenario, requests, unbounded, progress)


DEFAULT_CONTENDERS = (
    *map(Contender, PolicyType),
    Contender(PolicyType.FIFO, Drain.FREEZE),
    Contender(None),
)
"""With the baselines of every comparison: the simplest rule that freezes, and what others do."""


@dataclass(frozen=True, slots=True)
class PlottedRun:
    """What is drawn of one run: its timeline, its leases, and each time to first token; infinite if there was none."""

    name: str
    timeline: Timeline
    end: Seconds
    ttfts: Mapping[str, Sequence[float]]
    """By model."""
    leases: Sequence[LeaseTimes] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """A trace under several contenders: the figures and what to draw of each, and what none of them can be below."""

    runs: Sequence[RunFigures]
    plotted: Sequence[PlottedRun]
    bound: LowerBound
    uses: Sequence[GpuUse] = ()
    """How each of the runs used the GPUs."""


def study(
    scenario: Scenario,
    requests: Sequence[TrafficRequest],
    contenders: Sequence[Contender],
    begin: Callable[[str, int | None], Callable[[float], None]],
) -> Study:
    """Run the trace under each. ``begin`` is called with the name and size of each step, and returns its progress."""
    runs, plotted, uses = [], [], []
    for contender in contenders:
        name = str(contender)
        result = contender.play(scenario, requests, begin(name, len(requests)))
        runs.append(summarise(name, requests, result, scenario.settings))
        plotted.append(_plotted(name, requests, result))
        uses.append(use_of(result))
    begin("lower bound", None)
    return Study(runs, plotted, bound_of(scenario, requests), uses)


def _plotted(name: str, requests: Sequence[TrafficRequest], result: RunResult) -> PlottedRun:
    ttfts: dict[str, list[float]] = {}
    for request, first_token_at, served in zip(requests, result.first_token_at, result.served, strict=True):
        ttfts.setdefault(request.model, []).append(first_token_at - request.at_seconds if served else math.inf)
    return PlottedRun(name, result.timeline, result.end, ttfts, result.leases)
