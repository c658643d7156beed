import json
from pathlib import Path
from typing import Any

import pytest

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.host_memory import PROCESS_MIB, host_memory, steps_down
from llmux.simulation.virtual.scenario import build_scenario, simulate, use_of

OFFLOAD, DISCARD = Eviction.parse("offload+keep_running"), Eviction.parse("discard+keep_running")
SUSPEND = Eviction.parse("retain+cuda_suspend")
GIB = 1024


def settings(model: dict[str, Any], names: str = "abc", **more: Any) -> Settings:
    models = {name: {"model_path": name, "eviction": "offload+keep_running", **model} for name in names}
    return loads(json.dumps({"models": models, **more})).settings


def on_a_gpu(**more: Any) -> Settings:
    return settings({"gpu_memory": "20GiB"}, gpus=[{"memory": "24GiB"}], **more)


def test_only_what_makes_sleepers_go_deeper_gives_them_steps() -> None:
    assert steps_down(settings({}), "a") == ()
    assert steps_down(settings({}, host_memory_max="64GiB"), "a") == (DISCARD,)
    assert steps_down(settings({}, policy={"sleep_deeper_after_seconds": 60}), "a") == (DISCARD,)
    assert steps_down(settings({"eviction": "discard+keep_running"}, host_memory_max="64GiB"), "a") == ()


def test_weights_take_what_their_files_do_or_at_most_what_the_gpu_holds(tmp_path: Path) -> None:
    assert host_memory(on_a_gpu(host_memory_max="64GiB"), "a") == {OFFLOAD: 21 * GIB, DISCARD: PROCESS_MIB}
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(10 << 30)
    local = settings({"model_path": str(tmp_path)}, "a", host_memory_max="64GiB")
    assert host_memory(local, "a")[OFFLOAD] == 11 * GIB
    unknown = settings({}, host_memory_max="64GiB")
    assert host_memory(unknown, "a") == {DISCARD: PROCESS_MIB}
    suspends = {"eviction": "retain+cuda_suspend", "gpu_memory": "20GiB"}
    suspended = settings(suspends, gpus=[{"memory": "24GiB"}], host_memory_max="64GiB")
    assert host_memory(suspended, "a") == {SUSPEND: 21 * GIB}
    assert host_memory(on_a_gpu(), "a") == {OFFLOAD: 21 * GIB}, "for the report, though nothing depends on it"


@pytest.mark.parametrize(("maximum", "is_short"), [("100GiB", False), ("70GiB", False), ("30GiB", True)])
def test_sleepers_go_deeper_where_host_memory_is_short(maximum: str, is_short: bool) -> None:
    """Each of the three holds 21 GiB asleep, which is not known before the first time."""
    requests = [TrafficRequest(50.0 * number, "abc"[number % 3], 80, 20) for number in range(30)]
    scenario = build_scenario(on_a_gpu(host_memory_max=maximum, policy={"min_active_seconds": 0}))
    result = simulate(scenario, requests, PolicyType.FIFO)
    sleepers = use_of(result).sleepers
    assert all(result.served)
    assert (sleepers.steps_down > 0) is is_short
    assert sleepers.host_mib_max >= 2 * 21 * GIB


def test_sleepers_go_deeper_with_time() -> None:
    requests = [TrafficRequest(50.0 * number, "ab"[number % 2], 80, 20) for number in range(20)]
    scenario = build_scenario(on_a_gpu(policy={"sleep_deeper_after_seconds": 10}), ["evict=1,wake=1,cold=9"])
    result = simulate(scenario, requests, PolicyType.FIFO)
    assert use_of(result).sleepers.steps_down == 18, "whenever one had slept for 10 s"
    assert {round(switch.wake_seconds) for switch in result.switches} == {9}, "it was stopped then"


def test_without_room_a_model_leaves_by_what_keeps_less_and_comes_back_at_its_cost() -> None:
    requests = [TrafficRequest(50.0 * number, "ab"[number % 2], 80, 20) for number in range(20)]
    scenario = build_scenario(
        on_a_gpu(host_memory_max="4GiB"), ["evict=1,wake=1,cold=20", "discard+keep_running:wake=9"]
    )
    wakes = [round(switch.wake_seconds) for switch in simulate(scenario, requests, PolicyType.FIFO).switches]
    assert 9 in wakes
