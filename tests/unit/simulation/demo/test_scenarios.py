"""The GPU of each demo holds one model, and its traffic is mixed and repeatable."""

from itertools import combinations, pairwise

import pytest

from llmux.simulation.demo.scenarios import CAPACITY_MIB, CHATS, FLEET, MIXED, Scenario
from llmux.simulation.traffic import RequestKind

pytestmark = pytest.mark.parametrize("scenario", [CHATS, MIXED, FLEET], ids=["chats", "mixed", "fleet"])


def test_a_gpu_holds_each_model_beside_sleepers_and_a_single_one_no_two(scenario: Scenario) -> None:
    for model in scenario.models:
        asleep = sum(other.asleep_mib for other in scenario.models if other is not model)
        assert model.memory_mib + asleep <= CAPACITY_MIB
        assert model.gpus <= scenario.gpus
    for one, other in combinations(scenario.models, 2):
        if scenario.gpus == 1:
            assert one.memory_mib + other.memory_mib > CAPACITY_MIB


def test_of_several_gpus_two_small_models_fit_on_each_and_the_large_one_beside_none(scenario: Scenario) -> None:
    small = [model for model in scenario.models if model.gpus == 1]
    large = [model for model in scenario.models if model.gpus > 1]
    assert bool(large) is (scenario.gpus > 1)
    for model in large:
        for pair in combinations(small, 2):
            assert sum(one.memory_mib for one in pair) + model.asleep_mib <= CAPACITY_MIB
        assert all(one.memory_mib + model.memory_mib > CAPACITY_MIB for one in small)


def test_a_seed_gives_the_same_requests_and_another_one_others(scenario: Scenario) -> None:
    assert list(scenario.traffic(1, 5.0)) == list(scenario.traffic(1, 5.0))
    assert list(scenario.traffic(1, 5.0)) != list(scenario.traffic(2, 5.0))


def test_requests_arrive_in_order_and_within_the_time(scenario: Scenario) -> None:
    times = [request.at_seconds for request in scenario.traffic(3, 10.0)]
    assert times[0] == 0.0
    assert all(first <= second for first, second in pairwise(times))
    assert times[-1] < 10.0


def test_all_models_and_kinds_occur_and_some_clients_leave(scenario: Scenario) -> None:
    requests = list(scenario.traffic(1, 20.0))
    asked: dict[str, set[RequestKind]] = {model.name: set() for model in scenario.models}
    for request in requests:
        asked[request.model].add(request.kind)
    assert asked == {model.name: set(model.kinds) for model in scenario.models}
    leaving = [request for request in requests if request.patience_seconds is not None]
    assert 0 < len(leaving) < len(requests) / 3


def test_no_two_prompts_are_the_same(scenario: Scenario) -> None:
    requests = list(scenario.traffic(1, 20.0))
    assert len({request.prompt for request in requests}) == len(requests)
