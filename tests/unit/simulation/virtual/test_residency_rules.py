"""What the configuration says about who may be on the GPUs together is kept in virtual time as well."""

from llmux.config.load import loads, with_overrides
from llmux.config.policy import PolicyType
from llmux.simulation.residency import OFF_GPU
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.run import RunResult
from llmux.simulation.virtual.scenario import bound_of, build_scenario, not_simulated, simulate, summarise

GROUP = "models: [a, b]"


def turns(count: int = 12, names: str = "ab", every: float = 20.0) -> list[TrafficRequest]:
    return [TrafficRequest(every * number, names[number % len(names)], 80, 20) for number in range(count)]


def on_a_gpu(*, groups: str = "", pinned: str = "", size: int = 10, names: str = "abc") -> str:
    models = "".join(
        f"  {name}: {{model_path: m, gpu_memory: {size}GiB, eviction: offload+keep_running"
        f"{', pin: keep' if name in pinned else ''}}}\n"
        for name in names
    )
    more = f"groups: {{g: {{{groups}}}}}\n" if groups else ""
    return f"gpus: [{{memory: 24GiB}}]\npolicy: {{min_active_seconds: 0}}\nmodels:\n{models}{more}"


def played(config: str, requests: list[TrafficRequest]) -> RunResult:
    return simulate(build_scenario(loads(config).settings, ["2"]), requests, PolicyType.FIFO)


def overlap_seconds(result: RunResult, one: str, other: str) -> float:
    """For how long both were on the GPU."""
    first, second = (
        [(begin, end) for begin, end, phase in result.timeline.spans(name, result.end) if phase not in OFF_GPU]
        for name in (one, other)
    )
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in first for b in second)


def test_models_of_an_exclusive_group_are_never_on_the_gpu_together_though_they_would_fit() -> None:
    apart = played(on_a_gpu(groups=f"{GROUP}, exclusive: true"), turns())
    together = played(on_a_gpu(), turns())
    assert overlap_seconds(apart, "a", "b") == 0.0
    assert overlap_seconds(together, "a", "b") > 100.0
    assert (len(apart.switches), len(together.switches)) == (12, 2)
    assert all(apart.served) and all(together.served)


def test_models_of_a_persistent_group_leave_for_each_other_only() -> None:
    requests = [*turns(2), TrafficRequest(50.0, "c", 80, 20)]
    result = played(on_a_gpu(groups=f"{GROUP}, persistent: true"), requests)
    assert result.served == [True, True, False], "there is no room for a third beside those that stay"
    assert result.ended_at[2] == 50.0
    assert [switch.model for switch in result.switches] == ["a", "b"]
    assert all(played(on_a_gpu(), requests).served)


def test_models_of_a_together_group_come_with_each_other_and_are_not_below_the_bound() -> None:
    scenario = build_scenario(loads(on_a_gpu(groups=f"{GROUP}, together: true")).settings, ["2"])
    requests = [TrafficRequest(0.0, "a", 80, 4000), TrafficRequest(50.0, "b", 80, 20)]
    result = simulate(scenario, requests, PolicyType.FIFO)
    assert result.admitted_at[1] == 50.0, "it was there when it was asked for first"
    reached, bound = summarise("", requests, result).total.ttft.mean, bound_of(scenario, requests).ttft_mean
    assert reached is not None and bound is not None and bound <= reached + 1e-9


def test_a_pinned_model_stays_once_it_is_there_and_others_take_turns_beside_it() -> None:
    config = on_a_gpu(pinned="a")
    result = played(config, turns(names="abc"))
    assert all(result.served)
    assert [switch.model for switch in result.switches].count("a") == 1
    assert {phase for _, _, phase in result.timeline.spans("a", result.end, 30.0)}.isdisjoint(OFF_GPU)
    unpinned = played(on_a_gpu(), turns(names="abc"))
    assert [switch.model for switch in unpinned.switches].count("a") > 1


def test_what_cannot_be_simulated_is_said() -> None:
    assert not_simulated(build_scenario(loads(on_a_gpu()).settings)) == []
    keys = "gpu_memory_reserve: 1GiB\nprefetch: {models: predicted}"
    settings = with_overrides(loads(f"{keys}\n{on_a_gpu()}").settings, port=1)
    assert [said.split()[0] for said in not_simulated(build_scenario(settings))] == ["gpu_memory_reserve", "prefetch"]
    assert [said.split()[0] for said in not_simulated(build_scenario(settings, disk_bytes_per_second=1))] == [
        "gpu_memory_reserve"
    ]
    sizeless = loads("models: {a: {model_path: /m}, b: {model_path: /m}}").settings
    (said,) = not_simulated(build_scenario(sizeless, ["b:read=3"], disk_bytes_per_second=1))
    assert said.startswith("prefetch of a (")
