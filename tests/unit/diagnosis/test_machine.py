"""What the checks of the host say of planted facts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmux.config.settings import Settings
from llmux.diagnosis.findings import Finding, Level
from llmux.diagnosis.machine import GIB, Host, check_host, read_host, read_limit

HEALTHY = Host(
    kernel="6.1.0-9-amd64",
    open_files=65536,
    pids=None,
    process_ids=4194304,
    memory_bytes=64 * GIB,
    available_bytes=60 * GIB,
    container_limit_bytes=None,
    shm_bytes=32 * GIB,
    seccomp=False,
    year=2026,
    clock_is_kept=True,
)


def settings(**models: dict[str, Any]) -> Settings:
    described = {name: {"model_path": "org/m"} | model for name, model in models.items()}
    return Settings.model_validate({"models": described, "checkpoint": {}})


def finding(host: Host, what: str, configured: Settings | None = None) -> Finding:
    return next(one for one in check_host(host, configured) if one.what == what)


def test_a_healthy_host_has_nothing_wrong() -> None:
    assert {one.level for one in check_host(HEALTHY, None)} == {Level.OK}


def test_this_host_can_be_looked_at() -> None:
    host = read_host()
    assert host.memory_bytes >= host.available_bytes > 0
    assert host.open_files > 0
    assert len(list(check_host(host, None))) == 7


@pytest.mark.parametrize(
    ("change", "what", "level", "found", "remedy"),
    [
        ({"kernel": "5.4.0-1"}, "kernel", Level.WARNING, "5.4", "update the kernel"),
        ({"open_files": 1024}, "open files", Level.WARNING, "at most 1024", "LimitNOFILE="),
        ({"pids": 100}, "processes", Level.WARNING, "at most 100", "--pids-limit"),
        ({"year": 1970}, "clock", Level.ERROR, "1970", "chrony"),
        ({"clock_is_kept": False}, "clock", Level.WARNING, "nothing keeps it right", "chrony"),
        ({"clock_is_kept": None}, "clock", Level.UNKNOWN, "cannot be read", ""),
        ({"shm_bytes": 64 << 20}, "/dev/shm", Level.WARNING, "0.1 GiB", "--shm-size"),
        ({"shm_bytes": None}, "/dev/shm", Level.ERROR, "does not exist", "mount a tmpfs"),
    ],
)
def test_what_is_wrong_with_a_host_is_said_with_a_remedy(
    change: dict[str, Any], what: str, level: Level, found: str, remedy: str
) -> None:
    one = finding(replace(HEALTHY, **change), what)
    assert one.level is level
    assert found in one.found and remedy in one.remedy


def test_little_shared_memory_is_an_error_for_engines_on_several_gpus() -> None:
    several = settings(a={"extra_args": ["-tp", "2"]}, b={})
    one = finding(replace(HEALTHY, shm_bytes=64 << 20), "/dev/shm", several)
    assert one.level is Level.ERROR and "too little for a," in one.found


def test_a_filter_of_system_calls_matters_to_criu_alone() -> None:
    filtered = replace(HEALTHY, seccomp=True)
    assert finding(filtered, "system calls", settings(a={})).level is Level.OK
    one = finding(filtered, "system calls", settings(a={"eviction": "retain+checkpoint"}))
    assert one.level is Level.WARNING and "--privileged" in one.remedy


@pytest.mark.parametrize(
    ("memory_gib", "available_gib", "level"), [(64, 60, Level.OK), (4, 1, Level.WARNING), (2, 1, Level.WARNING)]
)
def test_offloaded_weights_must_fit_into_host_memory(
    tmp_path: Path, memory_gib: int, available_gib: int, level: Level
) -> None:
    """Sparse files: two models of 1 GiB, and 1 GiB is reserved."""
    for name in "ab":
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as weights:
            weights.truncate(GIB)
    offloaded = settings(
        **{name: {"model_path": str(tmp_path / name), "eviction": "offload+keep_running"} for name in "ab"}
    )
    host = replace(HEALTHY, memory_bytes=memory_gib * GIB, available_bytes=available_gib * GIB)
    one = finding(host, "host memory", offloaded)
    assert one.level is level
    assert "take 3.0 GiB" in one.found
    bounded = offloaded.model_copy(update={"host_memory_max": 1536 << 20})
    assert "take 2.5 GiB" in finding(host, "host memory", bounded).found


@pytest.mark.parametrize(
    ("eviction", "takes_memory"),
    [
        ("retain+cuda_suspend", True),
        ("offload+cuda_suspend", True),
        ("discard+cuda_suspend", False),
        ("discard+keep_running", False),
        ("retain+keep_running", False),
        ("retain+checkpoint", False),
        ("retain+stop", False),
    ],
)
def test_which_evictions_take_host_memory(tmp_path: Path, eviction: str, takes_memory: bool) -> None:
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(GIB)
    one = finding(HEALTHY, "host memory", settings(m={"model_path": str(tmp_path), "eviction": eviction}))
    assert ("take 2.0 GiB" in one.found) is takes_memory


def test_weights_whose_size_is_not_known_are_named() -> None:
    one = finding(HEALTHY, "host memory", settings(a={"eviction": "offload+keep_running"}))
    assert one.level is Level.UNKNOWN and "the weights of a are not local" in one.found


def test_a_containers_limit_is_said() -> None:
    limited = replace(HEALTHY, memory_bytes=8 * GIB, container_limit_bytes=8 * GIB)
    assert "8.0 GiB (the container's limit)" in finding(limited, "host memory").found


def test_few_process_ids_matter_to_criu_alone() -> None:
    few = replace(HEALTHY, process_ids=32768)
    assert "process ids" not in {one.what for one in check_host(few, settings(m={}))}
    one = finding(few, "process ids", settings(m={"eviction": "discard+checkpoint"}))
    assert one.level is Level.WARNING and one.remedy == "sysctl -w kernel.pid_max=4194304"


@pytest.mark.parametrize(
    ("limits", "own", "expected"),
    [
        ({"a/b/pids.max": "max", "a/pids.max": "100"}, "0::/a/b\n", 100),
        ({"a/b/pids.max": "50", "a/pids.max": "100"}, "0::/a/b\n", 50),
        ({"a/pids.max": "100"}, "0::/other\n", None),
        ({"pids.max": "70"}, "0::/../../outside\n", 70),
        ({"pids.max": "70"}, "0::/\n", 70),
        ({"pids/pids.max": "60"}, "3:pids:/x\n", 60),
        ({}, "", None),
    ],
)
def test_the_least_limit_of_the_control_groups_above_counts(
    tmp_path: Path, limits: dict[str, str], own: str, expected: int | None
) -> None:
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(limit + "\n")
    assert read_limit("pids.max", "pids/pids.max", tmp_path, own) == expected
