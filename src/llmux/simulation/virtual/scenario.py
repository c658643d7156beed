"""From a configuration and a trace to the figures of each policy."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.identifiers import Seconds
from llmux.core.policies.base import Bring, Choice, NoQuantum, PolicyView, Stay
from llmux.core.scheduler import Scheduler
from llmux.errors import LlmuxError
from llmux.server.build import build_scheduler
from llmux.simulation.figures import LowerBound, RunFigures, run_figures
from llmux.simulation.lower_bound import lower_bound
from llmux.simulation.residency import Timeline
from llmux.simulation.traffic import Ending, RequestOutcome, TrafficRequest
from llmux.simulation.virtual.costs import MeasuredSwitches, SwitchCost, default_cost, parse_costs
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.run import RunResult, VirtualRun


class UnknownModel(LlmuxError):
    """The trace has requests for models that are not configured."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated: the models with their limits, the cost of switches, and the speed of engines."""

    settings: Settings
    costs: Mapping[str, SwitchCost]
    speed: EngineSpeed = field(default_factory=EngineSpeed)
    measured: MeasuredSwitches | None = None


def build_scenario(
    settings: Settings,
    costs: Sequence[str] = (),
    speed: EngineSpeed | None = None,
    *,
    batch_limit: int | None = None,
    request_timeout_seconds: float | None = None,
) -> Scenario:
    """The scenario of a configuration, with some settings overridden; raises ``CostError``.

    ``request_timeout_seconds`` 0 means that requests wait for ever.
    """
    if batch_limit is not None:
        models = {
            name: model.model_copy(update={"max_in_flight": batch_limit}) for name, model in settings.models.items()
        }
        settings = settings.model_copy(update={"models": models})
    if request_timeout_seconds is not None:
        settings = _with_policy(settings, request_timeout_seconds=request_timeout_seconds or math.inf)
    defaults = {name: default_cost(settings.eviction_of(name)) for name in settings.models}
    return Scenario(settings, parse_costs(costs, defaults), speed or EngineSpeed())


def by_key(settings: Settings, requests: Sequence[TrafficRequest]) -> list[TrafficRequest]:
    """The requests, which may name their models in any way that the configuration knows, by the models' keys.

    Raises ``UnknownModel`` if one is for a model that is not configured.
    """
    names = settings.names()
    unknown = sorted({request.model for request in requests} - names.keys())
    if unknown:
        raise UnknownModel(
            f"the trace asks for {', '.join(unknown[:10])}, which the configuration does not have; "
            f"it has {', '.join(list(settings.models)[:10])}. A file for one model can be given as NAME=FILE"
        )
    return [replace(request, model=names[request.model].model) for request in requests]


def simulate(
    scenario: Scenario,
    requests: Sequence[TrafficRequest],
    policy: PolicyType,
    progress: Callable[[float], None] | None = None,
) -> RunResult:
    """Run the trace under one policy."""
    scheduler = build_scheduler(_with_policy(scenario.settings, policy_type=policy))
    return _run(scenario, requests, scheduler, progress)


def simulate_when_idle(scenario: Scenario, requests: Sequence[TrafficRequest]) -> RunResult:
    """Run the trace under the rule of llama-swap and Ollama: a model leaves only when it is idle."""
    unbounded = _with_policy(scenario.settings, max_wait_seconds=math.inf)
    return _run(scenario, requests, build_scheduler(unbounded, WhenIdle()))


def _run(
    scenario: Scenario,
    requests: Sequence[TrafficRequest],
    scheduler: Scheduler,
    progress: Callable[[float], None] | None = None,
) -> RunResult:
    return VirtualRun(
        scheduler,
        requests,
        scenario.costs,
        scenario.speed,
        warm=scenario.settings.warmup,
        measured=scenario.measured,
        progress=progress,
    ).run()


def bound_of(scenario: Scenario, requests: Sequence[TrafficRequest]) -> LowerBound:
    """The times to first token that no policy can be below, with any ``min_active_seconds`` that one of them uses."""
    settings = scenario.settings
    specs = [model.spec for model in build_scheduler(settings).models]
    residence_seconds_min = min(
        _with_policy(settings, policy_type=policy).policy.effective_min_active_seconds for policy in PolicyType
    )
    return lower_bound(requests, specs, scenario.costs, scenario.speed, residence_seconds_min)


@dataclass(frozen=True, slots=True)
class PlottedRun:
    """What is drawn of one run: its timeline, and by model each time to first token, infinite if there was none."""

    name: str
    timeline: Timeline
    end: Seconds
    ttfts: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Study:
    """A trace under several policies: the figures and what to draw of each, and what no policy can be below."""

    runs: Sequence[RunFigures]
    plotted: Sequence[PlottedRun]
    bound: LowerBound


def study(
    scenario: Scenario,
    requests: Sequence[TrafficRequest],
    policies: Sequence[PolicyType],
    begin: Callable[[str, int | None], Callable[[float], None]],
) -> Study:
    """Run the trace under each policy. ``begin`` is called with each step's name and size, and returns its progress."""
    runs, plotted = [], []
    for policy in policies:
        result = simulate(scenario, requests, policy, begin(policy.value, len(requests)))
        runs.append(summarise(policy.value, requests, result))
        plotted.append(_plotted(policy.value, requests, result))
    begin("lower bound", None)
    return Study(runs, plotted, bound_of(scenario, requests))


def _plotted(name: str, requests: Sequence[TrafficRequest], result: RunResult) -> PlottedRun:
    ttfts: dict[str, list[float]] = {}
    for request, first_token_at, served in zip(requests, result.first_token_at, result.served, strict=True):
        ttfts.setdefault(request.model, []).append(first_token_at - request.at_seconds if served else math.inf)
    return PlottedRun(name, result.timeline, result.end, ttfts)


def summarise(name: str, requests: Sequence[TrafficRequest], result: RunResult) -> RunFigures:
    """The figures of a run and of each requested model."""
    times = zip(result.admitted_at, result.first_token_at, result.ended_at, result.served, strict=True)
    outcomes = [
        RequestOutcome(
            request,
            request.at_seconds,
            _known(admitted_at),
            _known(first_token_at),
            _known(ended_at),
            Ending.ANSWERED if served else Ending.LOST,
        )
        for request, (admitted_at, first_token_at, ended_at, served) in zip(requests, times, strict=True)
    ]
    switches = Counter(switch.model for switch in result.switches)
    return run_figures(
        name,
        outcomes,
        switches,
        lambda model: result.timeline.shares(result.end, None if model is None else [model]),
    )


class WhenIdle(NoQuantum):
    """The rule of llama-swap and Ollama, for comparison: bring the model whose request has waited the longest, once
    those in its way are idle. As it bounds no wait, it is not a policy to configure, and runs without ``max_wait``.
    """

    def choose(self, view: PolicyView, now: Seconds) -> Choice:
        for candidate in view.candidates():
            if all(leaving.idle_since is not None for leaving in view.in_the_way(candidate)):
                return Bring(candidate.model)
        return Stay(math.inf)


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


def _with_policy(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"policy": settings.policy.model_copy(update=changes)})
