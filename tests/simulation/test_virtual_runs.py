"""Whole virtual runs over random traffic: no request is lost, runs are repeatable, and the bound is a bound."""

import random

import pytest

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import bound_of, build_scenario, simulate, summarise

NAMES = "abc"


def traffic(seed: int, models: int, per_second: float, seconds: float = 400.0) -> list[TrafficRequest]:
    chance = random.Random(seed)
    requests, at = [], 0.0
    while (at := at + chance.expovariate(per_second)) < seconds:
        model = NAMES[min(int(chance.expovariate(1.0)), models - 1)]
        requests.append(
            TrafficRequest(at, model, int(chance.expovariate(1 / 800)), 1 + int(chance.expovariate(1 / 100)))
        )
    return requests


def settings(models: int, min_active: float, max_in_flight: int) -> Settings:
    described = {name: {"model_path": name, "max_in_flight": max_in_flight} for name in NAMES[:models]}
    policy = {"min_active_seconds": min_active, "eviction": "offload+keep_running"}
    return loads(str({"models": described, "policy": policy})).settings


@pytest.mark.parametrize(
    ("seed", "models", "per_second", "costs", "min_active", "max_in_flight"),
    [
        (1, 2, 0.5, ["2"], 5.0, 256),
        (2, 2, 3.0, ["2"], 5.0, 32),
        (3, 3, 2.0, ["0.2"], 0.0, 8),
        (4, 3, 1.0, ["evict=1,wake=4"], 5.0, 4),
        (5, 1, 2.0, ["2"], 5.0, 8),
        (6, 2, 0.05, ["a:evict=0.1,wake=8"], 0.0, 1),
    ],
)
def test_no_policy_is_better_than_the_lower_bound(
    seed: int,
    models: int,
    per_second: float,
    costs: list[str],
    min_active: float,
    max_in_flight: int,
) -> None:
    requests = traffic(seed, models, per_second, seconds=60.0)
    scenario = build_scenario(
        settings(models, min_active, max_in_flight), costs, EngineSpeed(), request_timeout_seconds=0
    )
    least = bound_of(scenario, requests).ttft_mean
    assert least is not None
    for policy in PolicyType:
        reached = summarise(policy, requests, simulate(scenario, requests, policy)).total
        assert reached.unserved == 0
        assert reached.ttft.mean is not None and least <= reached.ttft.mean, policy


def test_every_request_ends_once_and_in_order() -> None:
    requests = traffic(7, 3, 4.0)
    scenario = build_scenario(settings(3, 5.0, 8), ["2"])
    result = simulate(scenario, requests, PolicyType.COST_AWARE)
    for request, admitted, first, ended, served in zip(
        requests, result.admitted_at, result.first_token_at, result.ended_at, result.served, strict=True
    ):
        if served:
            assert request.at_seconds <= admitted <= first <= ended
        else:
            assert ended == pytest.approx(request.at_seconds + 300.0)
    assert 0 < sum(result.served) < len(requests), "the load was meant to be too high"


def test_the_same_again_gives_the_same() -> None:
    requests = traffic(8, 3, 2.0)
    scenario = build_scenario(settings(3, 5.0, 8), ["2"])
    first, second = (simulate(scenario, requests, PolicyType.FIFO) for _ in range(2))
    assert first.ended_at == second.ended_at
    assert first.timeline == second.timeline
    assert first.switches == second.switches
