"""What is read ahead of a wake makes it shorter by what the disk would have taken, and costs nobody anything."""

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.core.eviction import Eviction
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.costs import CostError, SwitchCost
from llmux.simulation.virtual.host_memory import file_bytes
from llmux.simulation.virtual.run import RunResult
from llmux.simulation.virtual.scenario import Scenario, bound_of, build_scenario, simulate, summarise

GIB = 1 << 30
COSTS = ["evict=1,wake=30,cold=30"]


def scenario(
    prefetch: dict[str, Any] | None = None,
    *,
    names: str = "ab",
    eviction: str = "retain+stop",
    disk: float | None = GIB,
    costs: list[str] = COSTS,
) -> Scenario:
    """Models of 20 GiB in turn on a GPU of 24; a disk of 1 GiB a second reads one in 20 of the 30 s that it takes."""
    models = {name: {"model_path": "m", "gpu_memory": "20GiB", "eviction": eviction} for name in names}
    config = {
        "models": models,
        "gpus": [{"memory": "24GiB"}],
        "policy": {"min_active_seconds": 0},
        "prefetch": prefetch or {},
    }
    return build_scenario(loads(json.dumps(config)).settings, costs, disk_bytes_per_second=disk)


def play(some: Scenario, *requests: tuple[float, str, int]) -> RunResult:
    """Requests with their numbers of tokens: 40 take a second."""
    return simulate(some, [TrafficRequest(at, name, 0, tokens) for at, name, tokens in requests], PolicyType.FIFO)


LONG = (0.0, "a", 1 + 40 * 60)
"""Served from 30 to 90."""


def read_ahead_of(result: RunResult) -> tuple[float, ...]:
    assert result.read_ahead is not None
    return astuple(result.read_ahead)


def test_what_is_read_while_another_model_drains_is_saved_at_the_wake() -> None:
    result = play(scenario(), LONG, (75.0, "b", 1))
    assert result.admitted_at[1] == pytest.approx(91.0 + 30.0 - 16.0), "16 of 20 GiB from 75 to 91"
    assert read_ahead_of(result) == pytest.approx((2, 0, 16.0, 16.0 * 1024, 0.0))


def test_no_more_is_saved_than_the_disk_needs() -> None:
    result = play(scenario(), LONG, (40.0, "b", 1))
    assert result.admitted_at[1] == pytest.approx(91.0 + 10.0)
    assert read_ahead_of(result) == pytest.approx((2, 1, 20.0, 20.0 * 1024, 0.0))


def test_nothing_is_read_while_any_model_is_woken() -> None:
    assert play(scenario(), (0.0, "a", 1), (1.0, "b", 1)).admitted_at[1] == pytest.approx(31.0 + 29.0)


def test_the_rate_is_that_of_the_configuration_where_the_disk_is_faster() -> None:
    result = play(scenario({"rate_max": "512MiB"}), LONG, (75.0, "b", 1))
    assert result.admitted_at[1] == pytest.approx(91.0 + 30.0 - 8.0)


def test_no_more_is_kept_than_the_memory_that_it_may_take() -> None:
    result = play(scenario({"memory_max": "5GiB"}), LONG, (40.0, "b", 1))
    assert result.admitted_at[1] == pytest.approx(91.0 + 30.0 - 5.0)


def test_what_is_kept_for_others_counts_against_the_memory() -> None:
    result = play(scenario({"memory_max": "25GiB"}, names="abc"), LONG, (50.0, "b", 1), (51.0, "c", 1))
    assert result.admitted_at[2] == pytest.approx(result.ended_at[1] + 1.0 + 30.0 - 5.0), "beside the 20 of b"


def test_the_next_in_the_queue_is_read_first_and_the_one_after_it_then() -> None:
    result = play(scenario(names="abc"), LONG, (50.0, "b", 1), (51.0, "c", 1))
    first, second = 91.0 + 10.0, 91.0 + 10.0 + 1.0
    assert result.admitted_at[1] == pytest.approx(first)
    assert result.admitted_at[2] == pytest.approx(second + 10.0), "20 GiB until 70, then 20 more until 90"


def test_with_prediction_what_follows_by_habit_is_read_before_anybody_asks() -> None:
    requests = [(100.0 * number, "ab"[number % 2], 1) for number in range(12)]
    queued, predicted = (play(scenario({"models": which}), *requests) for which in ("queued", "predicted"))
    assert predicted.read_ahead is not None and queued.read_ahead is not None
    assert predicted.read_ahead.predicted_mib > 0 == queued.read_ahead.predicted_mib
    # At a quarter of 1 GiB/s, 69 s of idleness are enough for all but 3 GiB; the eviction's second reads one more.
    waits = [admitted - at for admitted, (at, _, _) in zip(predicted.admitted_at, requests, strict=True)]
    assert waits[-1] < 15.0 < 29.0 < queued.admitted_at[-1] - requests[-1][0]


@pytest.mark.parametrize("models", ["queued", "predicted"])
def test_evictions_that_read_no_files_are_not_helped(models: str) -> None:
    requests = [(100.0 * number, "ab"[number % 2], 1) for number in range(12)]
    asleep = scenario({"models": models}, eviction="offload+keep_running")
    with_it, without = play(asleep, *requests), play(replace(asleep, disk_bytes_per_second=None), *requests)
    assert list(with_it.admitted_at[2:]) == list(without.admitted_at[2:]), "but for the first starts"
    assert with_it.read_ahead is not None and with_it.read_ahead.wakes == 2


def test_none_is_never() -> None:
    requests = [LONG, (40.0, "b", 1), (95.0, "a", 500), (100.0, "b", 1)]
    off, never = (play(some, *requests) for some in (scenario({"models": "none"}), scenario(disk=None)))
    assert off.read_ahead is never.read_ahead is None
    assert list(off.ended_at) == list(never.ended_at)


def test_measured_reading_takes_the_place_of_files_and_disk() -> None:
    result = play(scenario(costs=[*COSTS, "b:read=7"]), LONG, (40.0, "b", 1))
    assert result.admitted_at[1] == pytest.approx(91.0 + 30.0 - 7.0)
    with pytest.raises(CostError, match="say with --disk-rate"):
        scenario(disk=None, costs=["read=7"])


def test_the_bound_counts_with_files_that_have_been_read() -> None:
    requests = [TrafficRequest(at, name, 0, 1 + 40 * 30) for at, name in ((0.0, "a"), (1.0, "b"), (60.0, "a"))]
    some = scenario()
    reached = summarise("fifo", requests, simulate(some, requests, PolicyType.FIFO)).total.ttft.mean
    bound, cold = bound_of(some, requests).ttft_mean, bound_of(scenario(disk=None), requests).ttft_mean
    assert reached is not None and bound is not None and cold is not None
    assert bound < cold and bound <= reached


def test_only_what_reads_files_can_be_saved() -> None:
    offload, discard = (Eviction.parse(f"{weights}+keep_running") for weights in ("offload", "discard"))
    cost = SwitchCost(1.0, 3.0, 30.0, wake_after={discard: 8.0}, read=10.0)
    assert [cost.reading(asleep) for asleep in (None, offload, discard)] == [10.0, 0.0, 8.0]
    least = cost.read_ahead(offload)
    assert (least.wake, least.cold, least.wake_after) == (3.0, 20.0, {discard: 0.0})
    assert SwitchCost(1.0, 3.0, 30.0, read=10.0).read_ahead(discard).wake == 0.0


def test_files_are_as_large_as_they_are_or_as_the_memory_that_they_take(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(3 << 20))
    models = {"there": {"model_path": str(tmp_path), "gpu_memory": "2GiB"}, "sized": {"model_path": "m/m"}}
    models["sized"]["gpu_memory"], models["unknown"] = "2GiB", {"model_path": "m/m"}
    settings = loads(json.dumps({"models": models, "gpus": [{"memory": "4GiB"}]})).settings
    assert [file_bytes(settings, name) for name in models] == [3 << 20, 2 * GIB, 0]
