"""What the checks of the GPUs say of planted facts."""

from dataclasses import replace
from typing import Any

import pytest

from llmux.config.settings import Settings
from llmux.diagnosis.findings import Finding, Level
from llmux.diagnosis.gpus import Gpu, Gpus, check_gpus
from llmux.errors import GpusUnreadable
from llmux.gpus.memory import GpuProcess

GPU = Gpu("H100", "GPU-1", 81920, 81000, compute_mode=0, is_split=False, is_persistent=True)
HEALTHY = Gpus("570.86.10", (GPU,), ())
SUSPENDS = {"eviction": "retain+cuda_suspend"}


def settings(model: dict[str, Any], **top: Any) -> Settings:
    return Settings.model_validate({"models": {"m": {"model_path": "x"} | model}, "checkpoint": {}, **top})


def worst(found: Gpus | GpusUnreadable, configured: Settings | None = None) -> Finding:
    order = list(Level)
    return max(check_gpus(found, configured), key=lambda one: order.index(one.level))


def test_a_healthy_gpu_has_nothing_wrong() -> None:
    assert {one.level for one in check_gpus(HEALTHY, settings(SUSPENDS))} == {Level.OK}


@pytest.mark.parametrize(
    ("change", "level", "found", "remedy"),
    [
        ({"compute_mode": 3}, Level.ERROR, "exclusive", "nvidia-smi -c DEFAULT"),
        ({"compute_mode": 2}, Level.ERROR, "prohibited", "nvidia-smi -c DEFAULT"),
        ({"is_split": True}, Level.WARNING, "MIG", "nvidia-smi -mig 0"),
        ({"is_persistent": False}, Level.WARNING, "unloaded", "nvidia-smi -pm 1"),
        ({"free_mib": 40000}, Level.WARNING, "40000 of 81920 MiB free", "gpu_memory"),
        ({"is_split": None, "is_persistent": None}, Level.OK, "", ""),
    ],
)
def test_what_is_wrong_with_a_gpu_is_said(change: dict[str, Any], level: Level, found: str, remedy: str) -> None:
    one = worst(replace(HEALTHY, gpus=(replace(GPU, **change),)))
    assert one.level is level
    assert found in one.found and remedy in one.remedy


def test_an_old_driver_cannot_suspend() -> None:
    old = replace(HEALTHY, driver="550.54")
    assert worst(old).level is Level.OK
    one = worst(old, settings(SUSPENDS))
    assert one.level is Level.ERROR and "570" in one.remedy


def test_others_on_the_gpu_are_named() -> None:
    others = tuple(GpuProcess(pid, "python", 100) for pid in range(6))
    one = worst(replace(HEALTHY, processes=others))
    assert one.level is Level.WARNING
    assert "python (pid 0, 100 MiB)" in one.found and "and 2 more" in one.found


def test_without_a_gpu_nothing_is_known() -> None:
    unreadable = GpusUnreadable("no driver")
    assert worst(unreadable).level is Level.UNKNOWN
    assert worst(replace(HEALTHY, gpus=())).level is Level.UNKNOWN
    assert worst(unreadable, settings({})).level is Level.UNKNOWN


def test_what_is_placed_by_memory_needs_gpus_that_can_be_read_or_are_declared() -> None:
    unreadable = GpusUnreadable("no driver")
    one = worst(unreadable, settings({"gpu_memory": "1GiB"}))
    assert one.level is Level.ERROR and "gpus: [{memory: 24GiB}]" in one.remedy
    assert worst(unreadable, settings({"gpu_memory": "1GiB"}, gpus=[{"memory": "2GiB"}])).level is Level.UNKNOWN
