from dataclasses import replace

import pytest

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.core.need import SeenNeed
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.costs import SwitchCost, default_cost
from llmux.simulation.virtual.scenario import (
    UnknownModel,
    bound_of,
    build_scenario,
    by_key,
    simulate,
    summarise,
    use_of,
)

REQUESTS = [TrafficRequest(0.0, "a", 80, 41), TrafficRequest(1.0, "b", 80, 41)]


def settings(**policy: object) -> Settings:
    models = {name: {"model_path": name, "eviction": "offload+keep_running"} for name in "ab"}
    return loads(str({"models": models, "policy": policy})).settings


def test_costs_are_by_default_those_of_the_eviction() -> None:
    expected = default_cost(Eviction.parse("offload+keep_running"))
    assert build_scenario(settings()).costs == {"a": expected, "b": expected}
    assert build_scenario(settings(), ["b:2"]).costs == {"a": expected, "b": SwitchCost(1.0, 1.0, 1.0)}


@pytest.mark.parametrize(
    ("model", "share"),
    [
        ({"eviction": "offload+keep_running"}, 1.0),
        ({"eviction": "retain+cuda_suspend"}, 0.0),
        ({"eviction": "discard+checkpoint"}, 1.0),
        ({"eviction": "retain+stop", "extra_args": ["--kv-offloading-backend", "lmcache"]}, 1.0),
        ({"eviction": "discard+keep_running", "extra_args": ["--kv-offloading-backend", "lmcache"]}, 0.1),
        # Which versions keep that over a sleep cannot be told from the configuration.
        ({"eviction": "offload+keep_running", "extra_args": ["--kv-offloading-size", "8"]}, 1.0),
        ({"eviction": "retain+cuda_suspend", "engine": "sglang"}, 1.0),
        ({"eviction": "retain+cuda_suspend", "engine": "llama_cpp"}, 0.0),
    ],
)
def test_recompute_takes_what_is_known_of_the_engine_and_how_it_leaves(model: dict[str, object], share: float) -> None:
    read = loads(str({"models": {"a": {"model_path": "a", **model}}, "checkpoint": {}})).settings
    assert build_scenario(read, ["2"]).costs["a"].recompute_share == share


def test_limits_can_be_replaced() -> None:
    scenario = build_scenario(settings(), batch_limit=1, request_timeout_seconds=0)
    result = simulate(
        scenario, [TrafficRequest(0.0, "a", 0, 40 * 400), TrafficRequest(0.1, "a", 0, 1)], PolicyType.FIFO
    )
    assert result.served == [True, True]
    assert result.admitted_at[1] > 390
    assert scenario.settings.max_in_flight_of("b") == 1


def test_what_is_refused_early_is_counted_apart() -> None:
    # Answers of 10 s, one at a time: with 25 s of patience two may wait beside the one that is answered.
    requests = [TrafficRequest(float(number), "a", 0, 401) for number in range(6)]
    busy = [TrafficRequest(-100.0 + 12.0 * number, "a", 0, 401) for number in range(8)]
    scenario = build_scenario(settings(refuse_after_seconds=25), batch_limit=1, request_timeout_seconds=0)
    whole = [replace(one, at_seconds=one.at_seconds + 100.0) for one in (*busy, *requests)]
    result = simulate(scenario, whole, PolicyType.ADAPTIVE)
    figures = summarise("adaptive", whole, result).total
    assert figures.refused == figures.unserved == sum(result.refused) > 0
    assert all(result.served[: len(busy)])
    assert result.refused[-1]


def test_models_that_are_not_configured_are_named() -> None:
    with pytest.raises(UnknownModel, match="asks for c, which the configuration does not have; it has a, b"):
        by_key(settings(), [TrafficRequest(0.0, "c", 1, 1), *REQUESTS])


def test_a_trace_may_use_every_name_of_a_model() -> None:
    named = Settings.model_validate({"models": {"a": {"model_path": "org/a", "aliases": ["gpt-4"]}}})
    requests = [TrafficRequest(0.0, name, 1, 1) for name in ("a", "gpt-4", "org/a")]
    assert [request.model for request in by_key(named, requests)] == ["a", "a", "a"]


def test_the_figures_of_a_run_and_of_its_models() -> None:
    result = simulate(build_scenario(settings(min_active_seconds=0), ["2"]), REQUESTS, PolicyType.FIFO)
    run = summarise("fifo", REQUESTS, result)
    assert (run.name, run.total.requests, run.total.unserved, run.total.switches) == ("fifo", 2, 0, 2)
    assert run.models["a"].ttft.max == pytest.approx(1.01)
    assert run.models["b"].wait.max == pytest.approx(1.01 + 1.0 + 1 + 1 - 1.0)
    assert run.total.within == {5: 1.0, 10: 1.0, 30: 1.0}
    assert run.total.starvation == run.models["b"].starvation == pytest.approx(3.01)
    assert run.total.latency.max == run.models["b"].latency.max


def test_models_that_fit_together_do_not_take_turns_in_the_bound() -> None:
    """Each on a GPU of its own; the bound is the time that every request needs alone."""
    models = {name: {"model_path": name, "eviction": "offload+keep_running"} for name in "ab"}
    requests = [TrafficRequest(float(second), "ab"[second % 2], 80, 41) for second in range(40)]
    document = {"models": models, "policy": {"min_active_seconds": 0, "policy_type": "fifo"}}
    apart = build_scenario(loads(str({**document, "gpus": [{"memory": "24GiB"}] * 2})).settings, ["2"])
    together = build_scenario(loads(str(document)).settings, ["2"])
    reached = summarise("fifo", requests, simulate(apart, requests, PolicyType.FIFO)).total.ttft.mean
    assert reached is not None
    assert bound_of(apart, requests).ttft_mean == pytest.approx(reached)
    assert (bound_of(together, requests).ttft_mean or 0.0) > reached


@pytest.mark.parametrize("more", [{"preload": ["a"]}, {"default_model": "a"}], ids=["preload", "default model"])
def test_what_comes_unasked_is_not_below_the_bound(more: dict[str, object]) -> None:
    """It serves its first request without a wake, which the bound must not count."""
    models = {name: {"model_path": name} for name in "ab"}
    requests = [TrafficRequest(100.0 + number, "a", 80, 41) for number in range(10)]
    scenario = build_scenario(loads(str({"models": models, **more})).settings)
    result = simulate(scenario, requests, PolicyType.FIFO)
    bound = bound_of(scenario, requests).ttft_mean
    total = summarise("fifo", requests, result).total.ttft
    assert total.mean == pytest.approx(bound) == pytest.approx(80 / 8000)


def test_models_are_placed_by_what_their_engines_were_seen_to_hold() -> None:
    """Nothing says what they need: each would have the GPU to itself. What sleepers still hold counts as well."""
    models = {name: {"model_path": name, "engine": "sglang", "eviction": "offload+keep_running"} for name in "ab"}
    some = loads(str({"models": models, "gpus": [{"memory": "10000MiB"}]})).settings
    requests = [TrafficRequest(50.0 * number, "ab"[number % 2], 80, 41) for number in range(10)]
    unknown = simulate(build_scenario(some, ["2"]), requests, PolicyType.FIFO)
    assert len(unknown.switches) == 10
    offload = Eviction.parse("offload+keep_running")
    seen = dict.fromkeys("ab", SeenNeed(4000))
    assert len(simulate(build_scenario(some, ["2"], seen=seen), requests, PolicyType.FIFO).switches) == 2
    large = dict.fromkeys("ab", SeenNeed(9000, {offload: 300}))
    [gpu] = use_of(simulate(build_scenario(some, ["2"], seen=large), requests, PolicyType.FIFO)).gpus
    assert gpu.held_max == pytest.approx((9000 * 1.05 + 300) / 10000)
