import pytest

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.costs import SwitchCost, default_cost
from llmux.simulation.virtual.scenario import UnknownModel, build_scenario, by_key, simulate, summarise

REQUESTS = [TrafficRequest(0.0, "a", 80, 41), TrafficRequest(1.0, "b", 80, 41)]


def settings(**policy: object) -> Settings:
    models = {name: {"model_path": name, "eviction": "offload+keep_running"} for name in "ab"}
    return loads(str({"models": models, "policy": policy})).settings


def test_costs_are_by_default_those_of_the_eviction() -> None:
    expected = default_cost(Eviction.parse("offload+keep_running"))
    assert build_scenario(settings()).costs == {"a": expected, "b": expected}
    assert build_scenario(settings(), ["b:2"]).costs == {"a": expected, "b": SwitchCost(1.0, 1.0, 1.0)}


def test_limits_can_be_replaced() -> None:
    scenario = build_scenario(settings(), batch_limit=1, request_timeout_seconds=0)
    result = simulate(
        scenario, [TrafficRequest(0.0, "a", 0, 40 * 400), TrafficRequest(0.1, "a", 0, 1)], PolicyType.FIFO
    )
    assert result.served == [True, True]
    assert result.admitted_at[1] > 390
    assert scenario.settings.max_in_flight_of("b") == 1


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
