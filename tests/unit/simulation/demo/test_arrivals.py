"""The demo's traffic is random, mixed, and the same for the same seed."""

from itertools import pairwise

from llmux.simulation.demo.arrivals import arrivals
from llmux.simulation.demo.records import Kind
from llmux.simulation.demo.scenario import MODELS


def test_a_seed_gives_the_same_calls_and_another_one_others() -> None:
    assert list(arrivals(1, 5.0)) == list(arrivals(1, 5.0))
    assert list(arrivals(1, 5.0)) != list(arrivals(2, 5.0))


def test_calls_come_in_order_and_within_the_time() -> None:
    times = [call.at_seconds for call in arrivals(3, 10.0)]
    assert times[0] == 0.0
    assert all(first <= second for first, second in pairwise(times))
    assert times[-1] < 10.0


def test_all_models_and_kinds_are_asked_for_and_some_clients_leave() -> None:
    calls = list(arrivals(1, 20.0))
    assert {call.model for call in calls} == {model.name for model in MODELS}
    assert {call.kind for call in calls} == set(Kind)
    leaving = [call for call in calls if call.leaves_after_seconds is not None]
    assert 0 < len(leaving) < len(calls) / 3


def test_no_two_prompts_are_the_same() -> None:
    calls = list(arrivals(1, 20.0))
    assert len({call.prompt for call in calls}) == len(calls)
