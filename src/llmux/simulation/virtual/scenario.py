"""From a configuration and a trace to the figures of each policy."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.need import SeenNeed
from llmux.core.policies.base import Policy
from llmux.core.scheduler import Scheduler
from llmux.core.target import DEFAULT_TARGET
from llmux.errors import LlmuxError
from llmux.server.build import build_scheduler, preload_groups
from llmux.simulation.figures import LowerBound, RunFigures, run_figures
from llmux.simulation.lower_bound import lower_bound
from llmux.simulation.occupancy import GpuUse, Sleepers, gpu_use
from llmux.simulation.traffic import Ending, RequestOutcome, TrafficRequest
from llmux.simulation.virtual.costs import CostError, MeasuredSwitches, SwitchCost, default_cost, parse_costs
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.host_memory import file_bytes, host_memory, steps_down
from llmux.simulation.virtual.leases import PlannedLease
from llmux.simulation.virtual.preparation import Preparation
from llmux.simulation.virtual.read_ahead import ReadAheadLimits, read_ahead_limits
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
    seen: Mapping[str, SeenNeed] = field(default_factory=dict)
    """What engines were seen to hold of the GPUs, by which models are placed where nothing else says it."""
    leases: Sequence[PlannedLease] = ()
    """Other programs that will ask for GPU memory."""
    disk_bytes_per_second: float | None = None
    """Without it, nothing is read ahead."""

    @property
    def read_ahead(self) -> ReadAheadLimits | None:
        """What may be read ahead of wakes; None: nothing."""
        return read_ahead_limits(self.settings, self.disk_bytes_per_second)

    def scheduler(self, own_policy: Policy | None = None, **policy_changes: Any) -> Scheduler:
        """The scheduler that would serve, with keys of the section ``policy`` changed. Raises ConfigError."""
        return build_scheduler(with_policy(self.settings, **policy_changes), own_policy, seen=self.seen)


def build_scenario(
    settings: Settings,
    costs: Sequence[str] = (),
    speed: EngineSpeed | None = None,
    batch_limit: int | None = None,
    request_timeout_seconds: float | None = None,
    seen: Mapping[str, SeenNeed] | None = None,
    disk_bytes_per_second: float | None = None,
) -> Scenario:
    """The scenario of a configuration, with some settings overridden; raises ``CostError``.

    ``request_timeout_seconds`` 0 means that requests wait for ever. Without a rate of the disk nothing is read ahead.
    """
    if batch_limit is not None:
        models = {
            name: model.model_copy(update={"max_in_flight": batch_limit}) for name, model in settings.models.items()
        }
        settings = settings.model_copy(update={"models": models})
    if request_timeout_seconds is not None:
        settings = with_policy(settings, request_timeout_seconds=request_timeout_seconds or math.inf)
    return Scenario(
        settings,
        costs_of(settings, costs, disk_bytes_per_second),
        speed or EngineSpeed(),
        seen=seen or {},
        disk_bytes_per_second=disk_bytes_per_second,
    )


def costs_of(
    settings: Settings, costs: Sequence[str], disk_bytes_per_second: float | None = None
) -> dict[str, SwitchCost]:
    """What switches of each model cost: what ``--costs`` says, else published figures. Raises ``CostError``.

    Where nothing else says it, reading takes as long as the disk needs for the model's files.
    """
    evictions = {name: settings.eviction_of(name) for name in settings.models}
    rate = disk_bytes_per_second
    reading = {name: 0.0 if rate is None else file_bytes(settings, name) / rate for name in settings.models}
    defaults = {name: replace(default_cost(evictions[name]), read=reading[name]) for name in settings.models}
    deeper = {name: steps_down(settings, name) for name in settings.models}
    seconds = parse_costs(costs, defaults, evictions, deeper)
    if rate is None and any(cost.read for cost in seconds.values()):
        raise CostError("--costs says how long reading takes (read=…); say with --disk-rate how fast the disk is, too")
    return {
        name: replace(
            cost,
            host_mib=host_memory(settings, name),
            recompute_share=settings.engine_of(name).recompute_share(evictions[name]),
        )
        for name, cost in seconds.items()
    }


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
    """Run the trace under one policy. Raises LeaseImpossible."""
    return run(scenario, requests, scenario.scheduler(policy_type=policy), progress)


def run(
    scenario: Scenario,
    requests: Sequence[TrafficRequest],
    scheduler: Scheduler,
    progress: Callable[[float], None] | None = None,
) -> RunResult:
    """Run the trace under a scheduler that was built for it."""
    settings = scenario.settings
    return VirtualRun(
        scheduler,
        requests,
        scenario.costs,
        scenario.speed,
        preparation=Preparation(settings.warmup, preload_groups(settings, scheduler), settings.default_model),
        measured=scenario.measured,
        progress=progress,
        leases=scenario.leases,
        read_ahead=scenario.read_ahead,
    ).run()


def not_simulated(scenario: Scenario) -> list[str]:
    """Keys about who has the memory that a simulation does not follow, each with what would have to be known for it."""
    unknown = {
        "gpu_memory_reserve": "what other programs take of the GPUs unasked",
        "host_memory_reserve_mib": "what other programs take of the host's memory",
    }
    if scenario.disk_bytes_per_second is None:
        unknown["prefetch"] = "how fast the disk is: --disk-rate"
    settings, defaults = scenario.settings, Settings.model_fields
    found = [f"{key} ({what})" for key, what in unknown.items() if getattr(settings, key) != defaults[key].default]
    unread = [name for name, cost in scenario.costs.items() if scenario.read_ahead is not None and not cost.read]
    if unread:
        found.append(f"prefetch of {', '.join(unread)} (how large their files are: gpu_memory, or read=… of --costs)")
    return found


def bound_of(scenario: Scenario, requests: Sequence[TrafficRequest]) -> LowerBound:
    """The mean time to first token that no policy is below, with any ``min_active_seconds`` that one of them uses."""
    settings = scenario.settings
    scheduler = scenario.scheduler()
    specs = [model.spec for model in scheduler.models]
    capacity = {gpu: total for gpu, (total, _) in scheduler.gpu_memory().items()}
    residence_seconds_min = min(
        with_policy(settings, policy_type=policy).policy.effective_min_active_seconds for policy in PolicyType
    )
    companions = (name for group in settings.groups.values() if group.together for name in group.models)
    unasked = {*settings.preload, settings.default_model or "", *companions}
    costs = scenario.costs
    if scenario.read_ahead is not None:
        costs = {spec.name: costs[spec.name].read_ahead(spec.begins_asleep or spec.eviction) for spec in specs}
    return lower_bound(requests, specs, costs, scenario.speed, residence_seconds_min, capacity, unasked)


def use_of(result: RunResult) -> GpuUse:
    """How a run used the GPUs."""
    sleepers = Sleepers(result.steps_down, max(mib for _, mib in result.host_memory))
    use = gpu_use(result.occupancy, result.timeline, result.causes, result.end, sleepers, result.leases)
    return replace(use, read_ahead=result.read_ahead)


def summarise(
    name: str, requests: Sequence[TrafficRequest], result: RunResult, settings: Settings | None = None
) -> RunFigures:
    """The figures of a run and of each requested model, by the targets of ``settings`` or the default ones."""
    outcomes = [
        RequestOutcome(
            request,
            request.at_seconds,
            None if math.isnan(admitted_at) else admitted_at,
            None if math.isnan(first_token_at) else first_token_at,
            None if math.isnan(ended_at) else ended_at,
            Ending.ANSWERED if served else Ending.LOST,
            "",
            refused,
        )
        for request, admitted_at, first_token_at, ended_at, served, refused in zip(
            requests,
            result.admitted_at,
            result.first_token_at,
            result.ended_at,
            result.served,
            result.refused,
            strict=True,
        )
    ]
    for number, progress in result.progress.items():
        outcomes[number].progress = progress
    switches = Counter(switch.model for switch in result.switches)
    return run_figures(
        name,
        outcomes,
        switches,
        lambda model: result.timeline.shares(result.end, None if model is None else [model]),
        (lambda model: DEFAULT_TARGET) if settings is None else (lambda model: settings.targets_of(model).interactive),
    )


def with_policy(settings: Settings, **changes: Any) -> Settings:
    """The settings with some of the policy's changed."""
    return settings.model_copy(update={"policy": settings.policy.model_copy(update=changes)})
