"""Where models may be, by what the configuration says."""

from typing import Any

import pytest

from llmux.config import checks
from llmux.config.placement import PLACES_MAX, declared_gpus, placements
from llmux.config.settings import Settings
from llmux.core.identifiers import ALL_OF_IT
from llmux.core.settings import ALL_OF_EVERY_GPU, WITHOUT_GPU, Placement
from llmux.errors import ConfigError

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
        ({"engine": "llama_cpp"}, [{"0": 24576}, {"1": 24576}]),
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


def test_an_impossible_need_raises() -> None:
    configured = settings(*TWO, m={"gpus": 3})
    with pytest.raises(ConfigError, match="it needs 3 GPUs"):
        placements(configured, "m", declared_gpus(configured, {}))
