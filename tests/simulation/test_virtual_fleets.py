"""Virtual runs over random fleets: memory is never over-committed, everybody is served, and the accounts agree."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from llmux.config.eviction import EvictionSettings
from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.config.settings import PrefetchedModels
from llmux.core.eviction import Drain, Eviction
from llmux.errors import ConfigError
from llmux.simulation.occupancy import Occupancy
from llmux.simulation.residency import OFF_GPU, Timeline
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.leases import PlannedLease
from llmux.simulation.virtual.scenario import Scenario, bound_of, build_scenario, simulate, summarise, use_of

SLOW_SEEDS = 60
EVICT_SECONDS = 0.5
COSTS = f"evict={EVICT_SECONDS},wake=1.5,cold=8"
OFFLOAD = Eviction.parse("offload+keep_running")


def fleet(chance: random.Random) -> Scenario:
    """One to four GPUs of any size, two to eight models that fit, and whatever else places or evicts them.

    Persistent groups are not among it: beside one, requests are refused.
    """
    sizes = [chance.choice((16, 24, 48, 80)) for _ in range(chance.randint(1, 4))]
    models = {f"model-{number}": model(chance, sizes) for number in range(chance.randint(2, 8))}
    policy = {"min_active_seconds": chance.choice((0, 5)), "idle_seconds": chance.choice((None, 3, 60))}
    more: dict[str, Any] = {"warmup": chance.random() < 0.5}
    if chance.random() < 0.3:
        more["preload"] = [chance.choice(list(models))]
    if chance.random() < 0.3:
        name = more["default_model"] = more.get("preload", list(models))[0]
        models[name].pop("idle_seconds", None)
    gpus = [{"memory": f"{size}GiB"} for size in sizes]
    config = {"gpus": gpus, "models": models, "policy": policy, **more}
    group = {"models": chance.sample(list(models), 2), chance.choice(("exclusive", "together")): True}
    try:
        settings = loads(json.dumps({**config, "groups": {"g": group}} if chance.random() < 0.5 else config)).settings
    except ConfigError:  # Its models cannot be together.
        settings = loads(json.dumps(config)).settings
    return build_scenario(settings, [COSTS], request_timeout_seconds=0)


def model(chance: random.Random, sizes: list[int]) -> dict[str, Any]:
    count = chance.randint(1, len(sizes))
    largest = sorted(sizes, reverse=True)[count - 1]
    found: dict[str, Any] = {
        "model_path": "m",
        "gpu_memory": f"{chance.randint(2, largest)}GiB",
        "gpus": count,
        "eviction": chance.choice(("offload+keep_running", "discard+keep_running", "retain+stop")),
        "drain": chance.choice(("wait", "wait", "freeze")),
        "max_in_flight": chance.choice((2, 16)),
    }
    if found["eviction"] == "retain+stop":
        found["drain"] = "wait"
    if chance.random() < 0.3:
        found["idle_seconds"] = chance.choice((1, 30))
    return found


def traffic(chance: random.Random, names: list[str]) -> list[TrafficRequest]:
    weights = [chance.random() for _ in names]
    requests, at = [], 0.0
    for _ in range(chance.randint(20, 150)):
        at += chance.expovariate(chance.choice((0.1, 1.0)))
        name = chance.choices(names, weights)[0]
        requests.append(TrafficRequest(at, name, chance.randint(0, 2000), chance.randint(1, 200)))
    return requests


def check_memory(occupancy: Occupancy) -> None:
    """At no time do models hold more of a GPU than it has."""
    times = {at for entries in occupancy.held.values() for at, _ in entries}
    for at in times:
        held = [occupancy.held_by(name, at) for name in occupancy.held]
        for gpu, total in occupancy.capacity.items():
            assert sum(footprint.get(gpu, 0) for footprint in held) <= total, f"{gpu} at {at}"


def check_apart(timeline: Timeline, end: float, one: str, other: str) -> None:
    """At no time are both on the GPUs."""
    spans = [
        [(begin, end) for begin, end, phase in timeline.spans(name, end) if phase not in OFF_GPU]
        for name in (one, other)
    ]
    for first, second in product(*spans):
        assert min(first[1], second[1]) <= max(first[0], second[0]), f"{one} and {other}"


def longest_above(host_memory: Sequence[tuple[float, int]], maximum_mib: int, end: float) -> float:
    """The longest time in which sleepers held more host memory than that."""
    longest, since = 0.0, None
    for at, mib in [*host_memory, (end, 0)]:
        if since is not None and mib <= maximum_mib:
            longest = max(longest, at - since)
        since = None if mib <= maximum_mib else at if since is None else since
    return longest


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, SLOW_SEEDS))]
)
def test_sleepers_are_above_the_maximum_no_longer_than_a_step_down_takes(seed: int) -> None:
    chance = random.Random(seed)
    scenario = fleet(chance)
    settings = scenario.settings
    models = {
        name: own.model_copy(update={"drain": Drain.WAIT, "eviction": EvictionSettings.of(OFFLOAD)})
        for name, own in settings.models.items()
    }
    settings = settings.model_copy(update={"models": models, "host_memory_max": chance.choice((4, 30, 60)) << 30})
    scenario = build_scenario(settings, [COSTS], request_timeout_seconds=0)
    requests = traffic(chance, list(models))
    result = simulate(scenario, requests, chance.choice(list(PolicyType)))
    assert all(result.served)
    maximum_mib = settings.host_memory_max_mib
    assert maximum_mib is not None
    assert longest_above(result.host_memory, maximum_mib, result.end) <= EVICT_SECONDS + 1e-9


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, SLOW_SEEDS))]
)
def test_a_random_fleet(seed: int) -> None:
    chance = random.Random(seed)
    scenario = fleet(chance)
    requests = traffic(chance, list(scenario.settings.models))
    policy = chance.choice(list(PolicyType))
    result = simulate(scenario, requests, policy)
    check_memory(result.occupancy)
    total = summarise(policy, requests, result, scenario.settings).total
    assert total.unserved == 0
    bound = bound_of(scenario, requests).ttft_mean
    assert bound is not None and total.ttft.mean is not None
    assert bound <= total.ttft.mean + 1e-9
    use = use_of(result)
    assert use.causes.total == len(result.switches)
    for group in scenario.settings.groups.values():
        if group.exclusive:
            check_apart(result.timeline, result.end, *group.models)
    for gpu in use.gpus:
        assert 0 <= gpu.held_mean <= gpu.held_max + 1e-9 <= 1 + 2e-9
        assert sum((gpu.shares.serving, gpu.shares.switching, gpu.shares.draining, gpu.shares.idle)) == pytest.approx(1)
        assert all(0 <= share <= 1 + 1e-9 for share in gpu.residents.values())
        assert gpu.worked <= sum(gpu.residents.values()) + 1e-9


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, SLOW_SEEDS))]
)
def test_a_gpu_lease_holds_its_memory_exactly_from_grant_to_end(seed: int) -> None:
    chance = random.Random(seed)
    scenario = fleet(chance)
    smallest_mib = min(gpu.memory >> 20 for gpu in scenario.settings.gpus)
    leases = sorted(
        (
            PlannedLease(chance.uniform(0, 120), chance.choice((0, 5, 60)), chance.choice((None, smallest_mib // 2)))
            for _ in range(chance.randint(1, 4))
        ),
        key=lambda lease: lease.at_seconds,
    )
    requests = traffic(chance, list(scenario.settings.models))
    result = simulate(replace(scenario, leases=leases), requests, chance.choice(list(PolicyType)))
    assert all(result.served)
    check_memory(result.occupancy)
    for times, lease in zip(result.leases, leases, strict=False):
        entries = result.occupancy.held.get(times.name, [])
        if times.held_at is None:
            assert entries == []
            continue
        ((gpu, mib),) = entries[0][1].items()
        assert mib == (lease.memory_mib or result.occupancy.capacity[gpu])
        end = [] if times.ended_at is None else [(times.ended_at, {})]
        assert entries == [(times.held_at, {gpu: mib}), *end]
        assert times.held_at >= times.asked_at == lease.at_seconds
        assert times.ended_at in (None, times.held_at + lease.held_seconds)


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, SLOW_SEEDS))]
)
def test_reading_ahead_keeps_to_its_limits_and_without_it_nothing_changes(seed: int) -> None:
    chance = random.Random(seed)
    base = fleet(chance)
    requests = traffic(chance, list(base.settings.models))
    policy = chance.choice(list(PolicyType))

    def reading(models: str) -> Scenario:
        prefetch = base.settings.prefetch.model_copy(update={"models": PrefetchedModels(models), "rate_max": 1 << 30})
        settings = base.settings.model_copy(update={"prefetch": prefetch})
        return build_scenario(settings, [COSTS], request_timeout_seconds=0, disk_bytes_per_second=4 << 30)

    never, off = simulate(base, requests, policy), simulate(reading("none"), requests, policy)
    assert list(never.ended_at) == list(off.ended_at) and never.read_ahead is off.read_ahead is None
    scenario = reading(chance.choice(("queued", "predicted")))
    result = simulate(scenario, requests, policy)
    assert all(result.served)
    check_memory(result.occupancy)
    found = result.read_ahead
    assert found is not None
    assert 0 <= found.queued_mib + found.predicted_mib <= 1024 * result.end
    assert 0 <= found.saved_seconds <= found.wakes * 8
    assert found.saved_seconds <= (found.queued_mib + found.predicted_mib) / 4096 + 1e-6, "only what was read is saved"
    bound, mean = bound_of(scenario, requests).ttft_mean, summarise(policy, requests, result).total.ttft.mean
    assert bound is not None and mean is not None and bound <= mean + 1e-9
