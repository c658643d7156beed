"""What the checks of the GPUs say of planted facts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmux.config.settings import Settings
from llmux.diagnosis.findings import Finding, Level
from llmux.diagnosis.gpus import Gpu, Gpus, check_gpus
from llmux.errors import GpusUnreadable
from llmux.gpus.memory import GpuProcess

GPU = Gpu("H100", "GPU-1", 81920, 81000, compute_mode=0, is_split=False, is_persistent=True)
HEALTHY = Gpus("570.86.10", (GPU,), ())
NO_VARIABLES = {"CUDA_MPS_PIPE_DIRECTORY": "/nowhere"}
SUSPENDS = {"eviction": "retain+cuda_suspend"}


def settings(model: dict[str, Any], **top: Any) -> Settings:
    return Settings.model_validate({"models": {"m": {"model_path": "x"} | model}, "checkpoint": {}, **top})


def worst(
    found: Gpus | GpusUnreadable, configured: Settings | None = None, environment: Mapping[str, str] = NO_VARIABLES
) -> Finding:
    order = list(Level)
    return max(check_gpus(found, configured, environment), key=lambda one: order.index(one.level))


def test_a_healthy_gpu_has_nothing_wrong() -> None:
    assert {one.level for one in check_gpus(HEALTHY, settings(SUSPENDS), NO_VARIABLES)} == {Level.OK}


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


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("0", Level.OK),
        ("GPU-1", Level.OK),
        ("MIG-1234", Level.OK),
        ("0,1", Level.WARNING),
        ("-1", Level.WARNING),
        ("", Level.WARNING),
        ("GPU-2", Level.WARNING),
    ],
)
def test_gpus_that_a_variable_hides(value: str, level: Level) -> None:
    hidden = {**NO_VARIABLES, "CUDA_VISIBLE_DEVICES": value}
    one = next(one for one in check_gpus(HEALTHY, None, hidden) if one.what == "CUDA_VISIBLE_DEVICES")
    assert one.level is level
    assert (level is Level.OK) == ("nvidia-smi -L" not in one.remedy)


def test_gpus_that_a_models_environment_hides() -> None:
    one = worst(HEALTHY, settings({"env": {"CUDA_VISIBLE_DEVICES": "3"}}))
    assert one.what == "models.m.env.CUDA_VISIBLE_DEVICES" and "'3' names no GPU here" in one.found


def test_mps_stands_in_the_way_of_suspension_alone(tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    used = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert worst(HEALTHY, settings({}), used).level is Level.OK
    one = worst(HEALTHY, settings(SUSPENDS), used)
    assert one.what == "MPS" and one.level is Level.WARNING
    assert "echo quit | nvidia-cuda-mps-control" in one.remedy
