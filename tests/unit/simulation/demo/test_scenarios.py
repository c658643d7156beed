"""The GPU of each demo holds one model, and its traffic is mixed and repeatable."""

from itertools import combinations, pairwise

import pytest

from llmux.simulation.demo.scenarios import CAPACITY_MIB, CHATS, MIXED, Scenario
from llmux.simulation.traffic import RequestKind

pytestmark = pytest.mark.parametrize("scenario", [CHATS, MIXED], ids=["chats", "mixed"])


def test_the_gpu_holds_each_model_beside_sleepers_but_no_two(scenario: Scenario) -> None:
    for model in scenario.models:
        asleep = sum(other.asleep_mib for other in scenario.models if other is not model)
        assert model.memory_mib + asleep <= CAPACITY_MIB
    for one, other in combinations(scenario.models, 2):
        assert one.memory_mib + other.memory_mib > CAPACITY_MIB


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
