"""Where models may be, by what the configuration says."""

from pathlib import Path
from typing import Any

import pytest

from llmux.config import checks
from llmux.config.placement import declared_gpus, leaves_sharing_open, placements
from llmux.config.settings import Settings
from llmux.core.identifiers import ALL_OF_IT
from llmux.core.placement import PLACES_MAX
from llmux.core.settings import ALL_OF_EVERY_GPU, WITHOUT_GPU, Placement
from llmux.errors import ConfigError
from tests.support import gguf_files

TWO = [{"memory": "24GiB"}, {"memory": "24GiB"}]


def settings(*gpus: dict[str, Any], **models: dict[str, Any]) -> Settings:
    described = {name: {"model_path": "x"} | model for name, model in models.items()}
    return Settings.model_validate({"models": described, "gpus": list(gpus)})


def places(configured: Settings, name: str = "m") -> list[dict[str, int]]:
    found = placements(configured, name, declared_gpus(configured, {}))
    return [{gpu.uuid: mib for gpu, mib in place.awake.items()} for place in found]


def problems(configured: Settings) -> list[tuple[str, str]]:
    return [(problem.path, problem.message) for problem in checks.problems(configured)]


def test_without_sizes_every_model_takes_all_of_every_gpu() -> None:
    plain = settings(m={}, r={"engine": "remote", "url": "http://127.0.0.1:1"})
    assert not plain.places_by_memory
    assert placements(plain, "m", {}) == (Placement(ALL_OF_IT, shrinks=True),)
    assert placements(settings(m={"engine": "llama_cpp"}), "m", {}) == (ALL_OF_EVERY_GPU,)
    assert placements(plain, "r", {}) == (WITHOUT_GPU,)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"gpu_memory": "10GiB"}, [{"0": 10240}, {"1": 10240}]),
        ({"gpu_memory": "300MiB"}, [{"0": 300}, {"1": 300}]),
        ({"gpu_memory": 1048577}, [{"0": 2}, {"1": 2}]),
        ({"gpu_memory": "10GiB", "gpus": [1]}, [{"1": 10240}]),
        ({"gpu_memory": "10GiB", "gpus": [1, 0]}, [{"1": 10240, "0": 10240}]),
        ({"gpu_memory": "10GiB", "gpus": 2}, [{"0": 10240, "1": 10240}]),
        ({"extra_args": ["-tp", "2", "--gpu-memory-utilization", "0.5"]}, [{"0": 12288, "1": 12288}]),
        ({"engine": "sglang"}, [{"0": 24576}, {"1": 24576}]),
        ({"engine": "sglang", "extra_args": ["--tp", "2", "--mem-fraction-static", "0.5"]}, [{"0": 12288, "1": 12288}]),
        ({"extra_args": ["-pp", "2"]}, [{"0": 22609, "1": 22609}]),
        ({"engine": "llama_cpp"}, [{"0": 24576, "1": 24576}]),
        ({"engine": "llama_cpp", "gpu_memory": "10GiB"}, [{"0": 10240}, {"1": 10240}]),
        ({"engine": "llama_cpp", "extra_args": ["-sm", "none"]}, [{"0": 24576}, {"1": 24576}]),
        ({"engine": "comfyui"}, [{"0": 24576, "1": 24576}]),
        ({"engine": "hooks", "url": "http://127.0.0.1:1"}, [{"0": 24576, "1": 24576}]),
        (
            {"engine": "command", "start_command": "docker run x", "stop_command": "docker rm x"},
            [{"0": 24576, "1": 24576}],
        ),
    ],
)
def test_a_model_may_be_wherever_its_need_fits(model: dict[str, Any], expected: list[dict[str, int]]) -> None:
    assert places(settings(*TWO, m=model)) == expected


def test_gpus_that_are_too_small_are_left_out() -> None:
    assert places(settings({"memory": "8GiB"}, *TWO, m={"gpu_memory": "10GiB"})) == [{"1": 10240}, {"2": 10240}]


def test_devices_are_named_by_their_key_by_what_llmux_sees_or_by_position() -> None:
    configured = settings({"memory": 1 << 30}, {"memory": 1 << 30, "device": "GPU-1f"}, m={})
    assert [gpu.uuid for gpu in declared_gpus(configured, {})] == ["0", "GPU-1f"]
    assert [gpu.uuid for gpu in declared_gpus(configured, {"CUDA_VISIBLE_DEVICES": "3, 2"})] == ["3", "GPU-1f"]


def test_of_many_gpus_only_neighbours_count() -> None:
    assert len(places(settings(*TWO * 4, m={"gpus": 4, "gpu_memory": 1 << 30}))) == 70
    found = places(settings(*TWO * 8, m={"gpus": 8, "gpu_memory": 1 << 30}))
    assert len(found) == 9 <= PLACES_MAX


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        ({"gpu_memory": "25GiB"}, "models.m.gpu_memory", "it needs 25600 MiB, and the GPUs that it may use have 24576"),
        ({"gpus": [2]}, "models.m.gpus", "there is no GPU 2: there are 2, and positions begin with 0"),
        ({"gpus": 3}, "models.m.gpus", "it needs 3 GPUs, and there are 2"),
        ({"extra_args": ["-tp", "4"]}, "models.m.gpus", "it needs 4 GPUs, and there are 2"),
        (
            {
                "engine": "hooks",
                "url": "http://127.0.0.1:1",
                "gpus": 1,
                "wake_command": "w",
                "sleep_command": "s",
                "alive_command": "a",
            },
            "models.m.gpus",
            "llmux cannot tell this engine which GPUs to use",
        ),
        (
            {"env": {"CUDA_VISIBLE_DEVICES": "1"}},
            "models.m.env.CUDA_VISIBLE_DEVICES",
            "CUDA_VISIBLE_DEVICES is set by llmux where it places models by memory",
        ),
    ],
)
def test_what_cannot_be_placed_is_said(model: dict[str, Any], path: str, message: str) -> None:
    configured = settings(*TWO, m=model)
    assert (path, message) in problems(configured)


def test_a_device_may_be_declared_once() -> None:
    twice = settings({"memory": "1GiB", "device": 1}, {"memory": "1GiB"}, m={})
    assert problems(twice) == [("gpus", "names a device twice")]


def test_a_reserve_for_other_programs_needs_engines_whose_processes_are_seen() -> None:
    container = {"engine": "command", "start_command": "docker run x", "stop_command": "docker rm x"}
    models = {"seen": {"model_path": "x"}, "unseen": {"port": 8000, **container}}
    configured = Settings.model_validate({"models": models, "gpu_memory_reserve": "1GiB"})
    (found,) = [problem for problem in checks.problems(configured) if problem.path == "gpu_memory_reserve"]
    assert "cannot tell the processes of 'unseen' from other programs" in found.message
    alone = Settings.model_validate({"models": {"seen": models["seen"]}, "gpu_memory_reserve": "1GiB"})
    assert not [problem for problem in checks.problems(alone) if problem.path == "gpu_memory_reserve"]


def test_an_impossible_need_raises() -> None:
    configured = settings(*TWO, m={"gpus": 3})
    with pytest.raises(ConfigError, match="it needs 3 GPUs"):
        placements(configured, "m", declared_gpus(configured, {}))


def test_a_llama_server_gets_one_gpu_if_its_file_says_that_it_fits(tmp_path: Path) -> None:
    """It spreads its layers over all GPUs that it sees, and a model that needs several must see them."""
    file = gguf_files.write(tmp_path / "m.gguf", tensors=[gguf_files.f32("t", (1 << 20, 4))])
    model = {"engine": "llama_cpp", "model_path": str(file)}
    assert places(settings({"memory": "64MiB"}, {"memory": "64MiB"}, m=model)) == [{"0": 64}, {"1": 64}]
    assert places(settings({"memory": "16MiB"}, {"memory": "16MiB"}, m=model)) == [{"0": 16, "1": 16}]
    spread = {**model, "extra_args": ["-ts", "1,1"]}
    assert places(settings({"memory": "64MiB"}, {"memory": "64MiB"}, m=spread)) == [{"0": 64, "1": 64}]


@pytest.mark.parametrize(
    ("document", "is_open", "by_memory"),
    [
        ({}, True, False),
        ({"share_gpus": True}, False, True),
        ({"share_gpus": False, "gpus": TWO}, False, False),
        ({"gpus": TWO}, False, True),
        ({"models": {"m": {"model_path": "x", "gpu_memory": "1GiB"}}}, False, True),
        ({"models": {"m": {"model_path": "x", "gpus": 1}}}, False, True),
        ({"models": {"m": {"model_path": "x", "env": {"CUDA_VISIBLE_DEVICES": "1"}}}}, False, False),
        ({"models": {"m": {"model_path": "x", "eviction": "retain+keep_running"}}}, False, False),
        ({"models": {"m": {"engine": "remote", "url": "http://h", "eviction": "retain+keep_running"}}}, True, False),
    ],
)
def test_what_leaves_it_to_the_machine_whether_models_share_gpus(
    document: dict[str, Any], is_open: bool, by_memory: bool
) -> None:
    configured = Settings.model_validate({"models": {"m": {"model_path": "x"}}, **document})
    assert (leaves_sharing_open(configured), configured.places_by_memory) == (is_open, by_memory)


def test_keys_without_effect_are_told() -> None:
    configured = settings(*TWO, m={"gpus": [0], "gpu_memory": "1GiB"}).model_copy(update={"share_gpus": False})
    assert [problem.path for problem in checks.warnings(configured)] == ["gpus", "models.m.gpus"]


def test_engines_that_take_nearly_a_whole_gpu_by_default_are_told() -> None:
    """What is said is meant, and so is a single model."""
    more = {
        "small": {"model_path": "y", "gpu_memory": "3GiB"},
        "said": {"model_path": "z", "extra_args": ["--gpu-memory-utilization=0.9"]},
    }
    found = list(checks.warnings(settings(*TWO, m={}, **more)))
    assert [(problem.path, problem.message.partition(",")[0]) for problem in found] == [
        ("models.m", "its engine takes 92% of each of its GPUs")
    ]
    assert not list(checks.warnings(settings(*TWO, m={})))
    assert not list(checks.warnings(settings(m={}, n={"model_path": "y"})))
