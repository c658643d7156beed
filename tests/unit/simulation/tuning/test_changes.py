import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmux.config.load import loads
from llmux.config.settings import Settings
from llmux.core.eviction import STOP, Eviction
from llmux.server.build import build_scheduler
from llmux.simulation.tuning.changes import (
    Change,
    GpuMemory,
    LeaveAfter,
    LeaveBy,
    Memory,
    applied,
    equal_parts,
    evictions,
    idle_times,
    is_kept_by_llmux,
    key_of,
    least_of_weights,
    parts,
    sizes,
    value_of,
    with_changes,
)

OFFLOAD = Eviction.parse("offload+keep_running")
GIB = 1024


def settings(models: dict[str, dict[str, Any]], **more: Any) -> Settings:
    named = {name: {"model_path": name, **model} for name, model in models.items()}
    return loads(json.dumps({"models": named, **more})).settings


def on_one_gpu(**needs: str) -> Settings:
    return settings({name: {"gpu_memory": need} for name, need in needs.items()}, gpus=[{"memory": "24GiB"}])


def memory_of(some: Settings, **least_mib: int) -> Memory:
    return Memory.of(build_scheduler(some), least_mib)


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        (GpuMemory("a", 12 * GIB), "gpu_memory", "12GiB"),
        (GpuMemory("a", 12 * GIB + 256), "gpu_memory", "12544MiB"),
        (LeaveBy("a", OFFLOAD), "eviction", "offload+keep_running"),
        (LeaveAfter("a", 60.0), "idle_seconds", 60),
        (LeaveAfter("a", None), "idle_seconds", None),
    ],
)
def test_a_change_is_written_as_a_configuration_file_has_it(change: Change, key: str, value: object) -> None:
    assert (key_of(change), value_of(change)) == (key, value)
    some = settings({"a": {"gpu_memory": "20GiB"}}, gpus=[{"memory": "24GiB"}])
    written = settings({"a": {"gpu_memory": "20GiB", key: value}}, gpus=[{"memory": "24GiB"}])
    changed = applied(some, (change,), memory_of(some, a=8 * GIB))
    assert getattr(changed.models["a"], key) == getattr(written.models["a"], key)


def test_less_memory_means_fewer_requests_at_once() -> None:
    some = settings({"a": {"gpu_memory": "20GiB", "max_in_flight": 32}}, gpus=[{"memory": "24GiB"}])
    memory = memory_of(some, a=8 * GIB)
    in_flight = {
        size: applied(some, (GpuMemory("a", size * GIB),), memory).max_in_flight_of("a") for size in (20, 14, 8)
    }
    assert in_flight == {20: 32, 14: 16, 8: 1}


def test_a_change_replaces_one_of_the_same_key_only() -> None:
    first, idle, other = GpuMemory("a", 1), LeaveAfter("a", 5.0), GpuMemory("b", 1)
    assert with_changes((first, idle, other), (GpuMemory("a", 2),)) == (idle, other, GpuMemory("a", 2))


def test_all_sizes_are_also_judged_together() -> None:
    first, second, idle = GpuMemory("a", 1), GpuMemory("b", 1), LeaveAfter("a", 5.0)
    assert parts((first, second, idle)) == [(first,), (second,), (idle,), (first, second)]
    assert parts((first, second)) == [(first,), (second,)], "both together are all changes"
    assert parts((first,)) == []


def test_evictions_need_nothing_that_is_not_set_up() -> None:
    def found(some: Settings) -> set[str]:
        return {str(value_of(change)) for change in evictions(some, "a")}

    stays = {"retain+stop", "offload+stop", "discard+stop"}
    sleeps = {"discard+keep_running", "offload+keep_running"}
    assert found(settings({"a": {"eviction": "offload+keep_running"}})) - stays == sleeps - {"offload+keep_running"}
    checkpoint = settings({"a": {}}, checkpoint={})
    assert found(checkpoint) - stays == sleeps | {f"{word}+checkpoint" for word in ("retain", "offload", "discard")}
    suspends = settings({"a": {}, "b": {"eviction": "retain+cuda_suspend"}})
    assert "retain+cuda_suspend" in found(suspends)
    llama = settings({"a": {"engine": "llama_cpp", "model_path": "a.gguf"}})
    assert not found(llama) - stays, "it cannot sleep"


def test_idle_times_other_than_the_present_one() -> None:
    assert list(idle_times(settings({"a": {"idle_seconds": 60}}), "a")) == [
        LeaveAfter("a", 10.0),
        LeaveAfter("a", 300.0),
        LeaveAfter("a", None),
    ]
    assert LeaveAfter("a", None) not in idle_times(settings({"a": {}}), "a")
    assert LeaveAfter("a", None) not in idle_times(settings({"a": {}}, policy={"idle_seconds": 5}), "a")


def test_sizes_fit_beside_the_others_and_are_not_below_the_least() -> None:
    memory = memory_of(on_one_gpu(a="20GiB", b="14GiB", c="3GiB"), a=7 * GIB)
    found = [change.mib for change in sizes("a", memory, memory) if isinstance(change, GpuMemory)]
    assert found == [12 * GIB, 10 * GIB, 8 * GIB], "half, beside b, a third; beside c it fits already"
    assert not list(sizes("b", memory, memory)), "nobody knows what it needs at the least"
    lowered = memory.with_sizes((GpuMemory("b", 9 * GIB),))
    assert GpuMemory("a", 15 * GIB) in sizes("a", memory, lowered)


def test_equal_parts_for_those_that_can_do_with_them() -> None:
    memory = memory_of(on_one_gpu(a="20GiB", b="20GiB", c="20GiB"), a=7 * GIB, b=9 * GIB)
    assert list(equal_parts(memory)) == [(GpuMemory("a", 12 * GIB), GpuMemory("b", 12 * GIB))]


def test_without_sizes_there_is_no_memory_to_distribute() -> None:
    some = settings({"a": {}, "b": {}})
    memory = memory_of(some, a=7 * GIB)
    assert memory == Memory((), {}, {})
    assert not list(equal_parts(memory)) and not list(sizes("a", memory, memory))


def test_the_least_is_estimated_from_the_weights_where_they_are_local(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(10 << 30)
    tensor_parallel = ["--tensor-parallel-size", "2"]
    local = {"one": {"model_path": str(tmp_path)}, "two": {"model_path": str(tmp_path), "extra_args": tensor_parallel}}
    least = least_of_weights(settings({**local, "remote": {"model_path": "org/remote"}}))
    assert least == {"one": math.ceil(10 * GIB * 1.2) + 1536, "two": math.ceil(5 * GIB * 1.2) + 1536}


def test_llmux_sets_a_size_where_the_engines_own_arguments_do_not() -> None:
    some = settings({"a": {}, "b": {"extra_args": ["--gpu-memory-utilization", "0.5"]}}, gpus=[{"memory": "24GiB"}])
    assert is_kept_by_llmux(some, GpuMemory("a", 8 * GIB))
    assert not is_kept_by_llmux(some, GpuMemory("b", 8 * GIB))
    assert some.eviction_of("a") == STOP
