"""Programs that take GPU memory in virtual time: they hold exactly what they asked for, exactly as long."""

import math

import pytest

from llmux.config.load import loads
from llmux.config.policy import PolicyType
from llmux.core.identifiers import GpuId
from llmux.simulation.occupancy import LeaseTimes
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.virtual.leases import LeaseImpossible, PlannedLease, leases_between
from llmux.simulation.virtual.run import STANDSTILL_SECONDS, RunResult
from llmux.simulation.virtual.scenario import Scenario, build_scenario, simulate, use_of

GIB = 1024
FIRST, SECOND = GpuId("local", "0"), GpuId("local", "1")


def scenario(*leases: PlannedLease, gpus: int = 1, timeout: float = 0) -> Scenario:
    models = {
        name: {"model_path": "m", "gpu_memory": "10GiB", "eviction": "offload+keep_running", "max_in_flight": 8}
        for name in "ab"
    }
    settings = loads(
        str({"models": models, "gpus": [{"memory": "24GiB"}] * gpus, "policy": {"min_active_seconds": 0}})
    ).settings
    found = build_scenario(settings, ["evict=1,wake=1,cold=1"], request_timeout_seconds=timeout)
    return Scenario(found.settings, found.costs, found.speed, leases=leases)


def play(*leases: PlannedLease, requests: list[TrafficRequest], gpus: int = 1, timeout: float = 0) -> RunResult:
    return simulate(scenario(*leases, gpus=gpus, timeout=timeout), requests, PolicyType.FIFO)


def test_a_lease_waits_until_idle_models_have_left_and_models_come_back_after_it() -> None:
    requests = [TrafficRequest(at, name, 80, 2) for at, name in ((0.0, "a"), (5.0, "b"), (60.0, "a"), (61.0, "b"))]
    result = play(PlannedLease(50.0, 100.0, 20 * GIB), requests=requests)
    assert result.leases == (LeaseTimes("GPU lease 1", 50.0, 51.0, 151.0),)
    assert result.occupancy.held["GPU lease 1"] == [(51.0, {FIRST: 20 * GIB}), (151.0, {})]
    assert list(result.admitted_at[2:]) == [152.0, 152.0], "as soon as it has ended, both beside each other"
    assert result.causes.forced == 2


def test_a_lease_that_fits_beside_the_models_disturbs_nobody() -> None:
    requests = [TrafficRequest(10.0 * number, "a", 80, 2) for number in range(10)]
    with_lease, without = play(PlannedLease(20.0, 30.0, 14 * GIB), requests=requests), play(requests=requests)
    assert with_lease.leases == (LeaseTimes("GPU lease 1", 20.0, 20.0, 50.0),)
    assert list(with_lease.ended_at) == list(without.ended_at)
    (gpu,) = use_of(with_lease).gpus
    assert gpu.held_max == 1.0
    assert gpu.residents["GPU lease 1"] == pytest.approx(30.0 / with_lease.end)


def test_a_lease_of_all_of_two_gpus() -> None:
    requests = [TrafficRequest(0.0, "a", 80, 2), TrafficRequest(30.0, "b", 80, 2)]
    result = play(PlannedLease(10.0, 60.0, None, 2), requests=requests, gpus=2)
    assert result.occupancy.held["GPU lease 1"][0] == (11.0, {FIRST: 24 * GIB, SECOND: 24 * GIB})
    assert result.admitted_at[1] == 72.0


def test_what_is_asked_for_beyond_the_trace_is_not_told_of() -> None:
    assert play(PlannedLease(500.0, 10.0, GIB), requests=[TrafficRequest(0.0, "a", 80, 2)]).leases == ()


def test_requests_that_wait_for_a_long_lease_are_not_given_up_as_if_nothing_would_ever_happen() -> None:
    held = 2 * STANDSTILL_SECONDS
    result = play(PlannedLease(0.0, held, None), requests=[TrafficRequest(1.0, "a", 80, 2)])
    assert result.served == [True]
    assert result.admitted_at[0] == held + 1.0


def test_more_than_there_is_cannot_be_leased() -> None:
    with pytest.raises(LeaseImpossible, match=r"25600MiB@1\+2 does not fit: the GPUs have 24576 MiB; ask for less"):
        play(PlannedLease(1.0, 2.0, 25 * GIB), requests=[TrafficRequest(0.0, "a", 80, 2)])


def test_the_leases_of_a_part_of_the_time() -> None:
    leases = [PlannedLease(10.0, 20.0), PlannedLease(25.0, 50.0, GIB, 2), PlannedLease(90.0, 5.0)]
    assert leases_between(leases, 0.0, 30.0) == leases[:2]
    assert leases_between(leases, 30.0, math.inf) == [PlannedLease(0.0, 45.0, GIB, 2), PlannedLease(60.0, 5.0)]
