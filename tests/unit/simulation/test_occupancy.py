"""How GPUs were used, from what models held and did."""

import pytest

from llmux.core.identifiers import ALL_OF_IT, EVERY_GPU, GpuId
from llmux.simulation.gpu_tables import gpu_document, gpu_rows
from llmux.simulation.occupancy import GpuUse, Occupancy, SwitchCauses, gpu_use, timeline_on
from llmux.simulation.residency import Phase, Timeline

FIRST, SECOND = GpuId("local", "0"), GpuId("local", "1")


def two_gpus() -> GpuUse:
    """``a`` is on the first GPU from 2 to 8, serving from 4 to 6, and leaves 20 MiB there; ``b`` is on both from 8."""
    occupancy = Occupancy({FIRST: 100, SECOND: 200})
    timeline = Timeline()
    for at, phase in ((2.0, Phase.STARTING), (4.0, Phase.SERVING), (6.0, Phase.LEAVING), (8.0, Phase.ASLEEP)):
        timeline.enter("a", phase, at)
    occupancy.hold("a", {FIRST: 80}, 2.0)
    occupancy.hold("a", {FIRST: 20}, 8.0)
    occupancy.hold("b", {FIRST: 80, SECOND: 100}, 8.0)
    timeline.enter("b", Phase.WAKING, 8.0)
    timeline.enter("b", Phase.SERVING, 9.0)
    return gpu_use(occupancy, timeline, SwitchCauses(first=2), 10.0)


def test_memory_and_time_of_each_gpu() -> None:
    first, second = two_gpus().gpus
    assert (first.name, first.total_mib, second.name, second.total_mib) == ("0", 100, "1", 200)
    assert first.held_mean == pytest.approx((6 * 80 + 2 * 100) / 10 / 100)
    assert first.held_max == 1.0
    assert (second.held_mean, second.held_max) == pytest.approx((2 * 100 / 10 / 200, 0.5))
    assert first.residents == pytest.approx({"a": 0.6, "b": 0.2})
    assert second.residents == pytest.approx({"b": 0.2})
    assert first.shares.switching == pytest.approx(0.5)
    assert second.shares.switching == pytest.approx(0.1)
    assert (first.worked, second.worked) == pytest.approx((0.3, 0.1))
    assert two_gpus().idle_seconds == pytest.approx(10 * (0.7 + 0.9))


def test_work_counts_though_another_model_is_switched_beside_it() -> None:
    occupancy, timeline = Occupancy({FIRST: 100}), Timeline()
    occupancy.hold("a", {FIRST: 40}, 0.0)
    occupancy.hold("b", {FIRST: 40}, 0.0)
    timeline.enter("a", Phase.SERVING, 0.0)
    timeline.enter("b", Phase.STARTING, 0.0)
    (gpu,) = gpu_use(occupancy, timeline, SwitchCauses(), 10.0).gpus
    assert (gpu.shares.switching, gpu.worked) == (1.0, 1.0)


def test_a_model_that_moves_is_on_one_gpu_after_the_other() -> None:
    occupancy, timeline = Occupancy({FIRST: 100, SECOND: 100}), Timeline()
    stays = ((0.0, FIRST, Phase.SERVING), (5.0, None, Phase.NOT_STARTED), (6.0, SECOND, Phase.SERVING))
    for at, gpu, phase in stays:
        occupancy.hold("a", {} if gpu is None else {gpu: 90}, at)
        timeline.enter("a", phase, at)
    assert timeline_on(occupancy, timeline, FIRST).entries["a"] == [(0.0, Phase.SERVING), (5.0, Phase.NOT_STARTED)]
    assert timeline_on(occupancy, timeline, SECOND).entries["a"] == [(0.0, Phase.NOT_STARTED), (6.0, Phase.SERVING)]


def test_without_sizes_there_is_one_line_for_all_gpus() -> None:
    occupancy, timeline = Occupancy(ALL_OF_IT), Timeline()
    occupancy.hold("a", ALL_OF_IT, 0.0)
    timeline.enter("a", Phase.SERVING, 0.0)
    use = gpu_use(occupancy, timeline, SwitchCauses(first=1), 10.0)
    assert gpu_rows(["fifo"], [use]).rows[1][1][:2] == ("  all GPUs", "100%")
    assert gpu_document(use)["gpus"]["all"]["memory_mib"] is None
    assert EVERY_GPU in occupancy.capacity


def test_a_run_without_time_is_no_division_by_zero() -> None:
    (gpu,) = gpu_use(Occupancy({FIRST: 100}), Timeline(), SwitchCauses(), 0.0).gpus
    assert (gpu.held_mean, gpu.held_max, gpu.worked) == (0.0, 0.0, 0.0)


def test_the_table_and_the_document() -> None:
    use = two_gpus()
    whole, first, second = gpu_rows(["fifo"], [use]).rows
    assert whole == (True, ("fifo", *[""] * 6, "2 switches: 2 first, 0 forced by memory, 0 not forced"))
    assert first[1] == ("  GPU 0", "68%", "100%", "30.0%", "50.0%", "0.0%", "20.0%", "a 60%, b 20%")
    assert second[1][-1] == "b 20%"
    document = gpu_document(use)
    assert document["switches_by_cause"] == {"first": 2, "forced": 0, "unforced": 0}
    assert document["gpu_idle_seconds"] == 16.0
    assert document["gpus"]["1"]["models"] == {"b": 0.2}
