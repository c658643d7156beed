import pytest

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.core.eviction import Drain
from llmux.simulation.residency import Phase
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.run import RunResult
from llmux.simulation.virtual.scenario import build_scenario
from llmux.simulation.virtual.study import DEFAULT_CONTENDERS, Contender, study

ANSWER = TrafficRequest(0.0, "a", 80, 1001)
"""Takes 25 s."""
OTHER = TrafficRequest(5.0, "b", 80, 2)


def play(text: str, *requests: TrafficRequest, drain: str = "wait") -> RunResult:
    models = {name: {"model_path": name, "eviction": "offload+keep_running", "drain": drain} for name in "ab"}
    scenario = build_scenario(loads(str({"models": models, "policy": {"policy_type": "adaptive"}})).settings, ["2"])
    return Contender.parse(text).play(scenario, list(requests))


@pytest.mark.parametrize(
    "text", ["adaptive", "fifo+freeze", "cost_aware+abort", "evict_when_idle", "evict_when_idle+wait"]
)
def test_contenders_are_written_as_they_are_read(text: str) -> None:
    assert str(Contender.parse(text)) == text


@pytest.mark.parametrize("text", ["when_idle", "fifo+", "fifo+idle", "+freeze", "fifo+freeze+wait"])
def test_what_is_no_contender_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid"):
        Contender.parse(text)


def test_another_drain_takes_the_place_of_every_models() -> None:
    assert play("fifo", ANSWER, OTHER).ended_at[1] > play("fifo", ANSWER, OTHER).ended_at[0]
    frozen = play("fifo+freeze", ANSWER, OTHER)
    assert frozen.ended_at[1] < frozen.ended_at[0]
    assert play("fifo+wait", ANSWER, OTHER, drain="freeze").ended_at == play("fifo", ANSWER, OTHER).ended_at


def test_evicting_when_idle_lets_a_busy_model_stay_however_long_others_wait() -> None:
    busy = [TrafficRequest(float(second), "a", 80, 201) for second in range(100)]
    result = play("evict_when_idle", *busy, OTHER)
    assert result.first_token_at[5] < 7.0
    waited = result.timeline.entries["b"]
    assert min(at for at, phase in waited if phase is Phase.SERVING) > 100.0
    assert Phase.DRAINING not in [phase for _, phase in result.timeline.entries["a"]]


def test_a_study_has_a_run_of_each_contender() -> None:
    models = {name: {"model_path": name, "eviction": "offload+keep_running"} for name in "ab"}
    scenario = build_scenario(loads(str({"models": models})).settings, ["2"])
    found = study(scenario, [ANSWER, OTHER], DEFAULT_CONTENDERS, lambda name, size: lambda done: None)
    names = [*PolicyType, "fifo+freeze", "evict_when_idle"]
    assert [run.name for run in found.runs] == [run.name for run in found.plotted] == names
    assert len(found.uses) == len(names)
    by_name = {run.name: run.total for run in found.runs}
    assert by_name["fifo+freeze"].latency.max > by_name["fifo"].latency.max
    assert Contender(PolicyType.FIFO, Drain.FREEZE) in DEFAULT_CONTENDERS
