import pytest

from llmux.core.identifiers import GpuId
from llmux.core.settings import ModelSpec
from llmux.simulation.bound.lower import lower_bound
from llmux.simulation.virtual.costs import SwitchCost
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.workload.call import TracedCall

SPEED = EngineSpeed(prefill=1000.0, decode_alone=40.0, decode_full=20.0)
COSTS = dict.fromkeys("abc", SwitchCost(1.0, 1.0, 9.0))
CALLS = [TracedCall(float(number), "ab"[number % 2], 100, 10) for number in range(100)]


def test_one_model_never_leaves() -> None:
    bound = lower_bound([TracedCall(0.0, "a", 100, 10)], [ModelSpec("a")], COSTS, SPEED, 5.0)
    assert bound.ttft.mean == bound.ttft.max == pytest.approx(1.1)
    assert bound.within == {5: 1.0, 10: 1.0, 30: 1.0}


def test_taking_turns_adds_to_the_mean_alone() -> None:
    bound = lower_bound(CALLS, [ModelSpec("a"), ModelSpec("b")], COSTS, SPEED, 5.0)
    own = sum(bound.durations) / 100
    assert bound.ttft.mean is not None and bound.ttft.mean > own + 1.0
    assert bound.ttft.max == max(bound.durations)


def test_models_that_fit_together_need_take_no_turns() -> None:
    gpu = GpuId("local", "0")
    specs = [ModelSpec(name, awake={gpu: 40}) for name in "ab"]
    apart, together = (lower_bound(CALLS, specs, COSTS, SPEED, 5.0, {gpu: size}) for size in (79, 80))
    assert together.ttft.mean == pytest.approx(sum(together.durations) / 100)
    assert apart.ttft.mean is not None and together.ttft.mean is not None and apart.ttft.mean > together.ttft.mean


def test_longer_turns_and_dearer_switches_cost_more() -> None:
    specs = [ModelSpec("a"), ModelSpec("b")]
    means = [
        lower_bound(CALLS, specs, dict.fromkeys("ab", cost), SPEED, turn).ttft.mean or 0.0
        for cost, turn in ((COSTS["a"], 0.0), (COSTS["a"], 5.0), (SwitchCost(2.0, 4.0, 9.0), 5.0))
    ]
    assert means == sorted(means) and means[0] < means[1] < means[2]


def test_three_models_are_set_against_the_rest_one_by_one() -> None:
    calls = [TracedCall(float(number), "abc"[number % 3], 100, 10) for number in range(100)]
    bound = lower_bound(calls, [ModelSpec(name) for name in "abc"], COSTS, SPEED, 5.0)
    assert bound.ttft.mean is not None and bound.ttft.mean > sum(bound.durations) / 100
