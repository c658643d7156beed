"""From a configuration and a trace to the figures of each policy."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.scheduler import Scheduler
from llmux.errors import LlmuxError
from llmux.server.build import build_scheduler
from llmux.simulation.bound.lower import lower_bound
from llmux.simulation.report.fate import Fate
from llmux.simulation.report.figures import LowerBound, RunFigures, figures_of
from llmux.simulation.report.picture import PlottedRun
from llmux.simulation.report.starvation import starvation
from llmux.simulation.virtual.costs import MeasuredSwitches, SwitchCost, default_cost, parse_costs
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.run import Outcome, VirtualRun
from llmux.simulation.virtual.when_idle import WhenIdle
from llmux.simulation.workload.call import TracedCall


class UnknownModel(LlmuxError):
    """The trace asks for models that the configuration does not have."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated: the models and their limits, what switches take, and how fast engines are."""

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
    """The scenario of a configuration, with some of it replaced; raises ``CostError``."""
    if batch_limit is not None:
        models = {
            name: model.model_copy(update={"max_in_flight": batch_limit}) for name, model in settings.models.items()
        }
        settings = settings.model_copy(update={"models": models})
    if request_timeout_seconds is not None:
        settings = _with_policy(settings, request_timeout_seconds=request_timeout_seconds or math.inf)
    defaults = {name: default_cost(settings.eviction_of(name)) for name in settings.models}
    return Scenario(settings, parse_costs(costs, defaults), speed or EngineSpeed())


def check_models(settings: Settings, calls: Sequence[TracedCall]) -> None:
    """Raises ``UnknownModel`` if the trace asks for a model that is not configured."""
    unknown = sorted({call.model for call in calls} - set(settings.models))
    if unknown:
        raise UnknownModel(
            f"the trace asks for {', '.join(unknown[:10])}, which the configuration does not have; "
            f"it has {', '.join(list(settings.models)[:10])}. A file for one model can be given as NAME=FILE"
        )


def simulate(
    scenario: Scenario,
    calls: Sequence[TracedCall],
    policy: PolicyType,
    progress: Callable[[float], None] | None = None,
) -> Outcome:
    """Run the trace under one policy."""
    scheduler = build_scheduler(_with_policy(scenario.settings, policy_type=policy))
    return _run(scenario, calls, scheduler, progress)


def simulate_when_idle(scenario: Scenario, calls: Sequence[TracedCall]) -> Outcome:
    """Run the trace under the rule that a model leaves only when it is idle, however long others wait."""
    unbounded = _with_policy(scenario.settings, max_wait_seconds=math.inf)
    return _run(scenario, calls, build_scheduler(unbounded, WhenIdle()))


def _run(
    scenario: Scenario,
    calls: Sequence[TracedCall],
    scheduler: Scheduler,
    progress: Callable[[float], None] | None = None,
) -> Outcome:
    return VirtualRun(
        scheduler,
        calls,
        scenario.costs,
        scenario.speed,
        warm=scenario.settings.warmup,
        measured=scenario.measured,
        progress=progress,
    ).run()


def bound_of(scenario: Scenario, calls: Sequence[TracedCall]) -> LowerBound:
    """The times to first token that no policy can be below."""
    settings = scenario.settings
    specs = [model.spec for model in build_scheduler(settings).models]
    least_turn = min(
        _with_policy(settings, policy_type=policy).policy.effective_min_active_seconds for policy in PolicyType
    )
    return lower_bound(calls, specs, scenario.costs, scenario.speed, least_turn)


@dataclass(frozen=True, slots=True)
class Study:
    """What was found: each policy's figures and what to draw of it, and what no policy can be below."""

    runs: Sequence[RunFigures]
    plotted: Sequence[PlottedRun]
    bound: LowerBound


def study(
    scenario: Scenario,
    calls: Sequence[TracedCall],
    policies: Sequence[PolicyType],
    begin: Callable[[str, int | None], Callable[[float], None]],
) -> Study:
    """Run the trace under each policy; ``begin`` is told of each step, and what it returns of the progress."""
    runs, plotted = [], []
    for policy in policies:
        outcome = simulate(scenario, calls, policy, begin(policy.value, len(calls)))
        runs.append(summarise(policy.value, calls, outcome))
        plotted.append(_plotted(policy.value, calls, outcome))
    begin("lower bound", None)
    return Study(runs, plotted, bound_of(scenario, calls))


def _plotted(name: str, calls: Sequence[TracedCall], outcome: Outcome) -> PlottedRun:
    ttfts: dict[str, list[float]] = {}
    for call, first, served in zip(calls, outcome.first_token_at, outcome.served, strict=True):
        ttfts.setdefault(call.model, []).append(first - call.at_seconds if served else math.inf)
    return PlottedRun(name, outcome.timeline, outcome.end, ttfts)


def summarise(name: str, calls: Sequence[TracedCall], outcome: Outcome) -> RunFigures:
    """The figures of a run, and of each model that was asked for."""
    times = zip(outcome.admitted_at, outcome.first_token_at, outcome.ended_at, outcome.served, strict=True)
    fates = [
        Fate(call.model, call.at_seconds, _known(admitted), _known(first), _known(ended), served)
        for call, (admitted, first, ended, served) in zip(calls, times, strict=True)
    ]
    own: dict[str, list[Fate]] = {}
    for fate in fates:
        own.setdefault(fate.model, []).append(fate)
    starved = {model: starvation(some) for model, some in own.items()}
    models = {
        model: figures_of(
            own[model],
            sum(switch.model == model for switch in outcome.switches),
            outcome.timeline.shares(outcome.end, [model]),
            starved[model],
        )
        for model in own
    }
    share = outcome.timeline.shares(outcome.end)
    total = figures_of(fates, len(outcome.switches), share, max(starved.values()))
    return RunFigures(name, total, models)


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


def _with_policy(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"policy": settings.policy.model_copy(update=changes)})
