"""Reading GPUs through NVML, with a fake library."""

import os
import sys
from collections.abc import Callable, Iterator

import pytest

from llmux.errors import GpusUnreadable
from llmux.gpus import nvml
from llmux.gpus.memory import GpuMemory, GpuProcess
from llmux.gpus.nvml import NvmlReader, gpu_models, usable_memory
from tests.support.fake_nvml import FakeGpu, FakeNvml

Install = Callable[[object], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    nvml._load.cache_clear()
    yield lambda library: monkeypatch.setitem(sys.modules, "pynvml", library)
    nvml._load.cache_clear()


def names(reader: NvmlReader) -> list[str]:
    return [gpu.gpu for gpu in reader.read_memory()]


def test_the_models_of_the_machines_gpus(install: Install) -> None:
    install(FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b"), FakeGpu("GPU-c", name="NVIDIA A100")))
    assert gpu_models() == "NVIDIA A100, NVIDIA Imaginary"
    nvml._load.cache_clear()
    install(FakeNvml(failure="the driver is not loaded"))
    assert gpu_models() == ""


def test_memory_of_each_gpu(install: Install) -> None:
    install(FakeNvml(FakeGpu("GPU-a", 24_000, 1_500), FakeGpu("GPU-b", 24_000)))
    name = "NVIDIA Imaginary"
    assert NvmlReader({}).read_memory() == (
        GpuMemory("GPU-a", 24_000, 1_500, name),
        GpuMemory("GPU-b", 24_000, 0, name),
    )


@pytest.mark.parametrize(
    ("visible", "count", "seen"),
    [
        (None, None, ["GPU-a", "GPU-b", "GPU-c"]),
        (None, 2, ["GPU-a", "GPU-b"]),
        ("2,0", None, ["GPU-c", "GPU-a"]),
        ("2, 0", 1, ["GPU-c"]),
        ("GPU-b", None, ["GPU-b"]),
        ("1,7,0", None, ["GPU-b"]),
        ("", None, []),
        ("-1", None, []),
    ],
)
def test_only_gpus_visible_to_the_engine_are_read(
    install: Install, visible: str | None, count: int | None, seen: list[str]
) -> None:
    install(FakeNvml(*map(FakeGpu, ("GPU-a", "GPU-b", "GPU-c"))))
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert names(NvmlReader(environment, count)) == seen


def test_processes_are_named_and_listed_once_for_each_gpu(install: Install) -> None:
    first, second = FakeGpu("GPU-a", processes={0: 300, 4_194_304: 500}), FakeGpu("GPU-b", processes={0: 400})
    install(FakeNvml(first, second))
    other, *ours = NvmlReader({}).read_processes()
    assert [(one.pid, one.mib, one.gpu) for one in ours] == [(os.getpid(), 400, "GPU-b"), (os.getpid(), 300, "GPU-a")]
    assert all(one.name for one in ours)
    assert other == GpuProcess(4_194_304, "unknown", 500, "GPU-a")
    assert str(other) == "unknown (pid 4194304, 500 MiB)"


def test_a_process_whose_memory_the_driver_does_not_report(install: Install) -> None:
    install(FakeNvml(FakeGpu("GPU-a", processes={0: None}), FakeGpu("GPU-b", processes={0: 400})))
    known, process = NvmlReader({}).read_processes()
    assert (known.mib, process.mib) == (400, None)
    assert "unknown" in str(process)


@pytest.mark.parametrize("library", [None, FakeNvml(failure="Driver Not Loaded")])
def test_a_missing_driver_or_package_is_reported(install: Install, library: object) -> None:
    install(library)
    with pytest.raises(GpusUnreadable, match="no GPU can be read here: .*(Driver Not Loaded|nvidia-ml-py)"):
        NvmlReader({}).read_memory()


def test_a_driver_that_fails_later(install: Install) -> None:
    library = FakeNvml(FakeGpu("GPU-a"))
    install(library)
    assert names(NvmlReader({})) == ["GPU-a"]
    library.failure = "GPU is lost"
    with pytest.raises(GpusUnreadable, match="GPU is lost"):
        NvmlReader({}).read_memory()


def test_what_engines_can_have_of_each_gpu_is_told_by_its_number(install: Install) -> None:
    """Without what the driver keeps for itself and what a desktop holds, where the driver tells."""
    second = FakeGpu("GPU-b", 2000, reserved_mib=300, graphics_mib=200, is_divided=False)
    install(FakeNvml(FakeGpu("GPU-a", 1000), second, FakeGpu("GPU-c", reserved_mib=None)))
    assert usable_memory({}) == {"0": 1000, "1": 1500, "2": 1000}
    assert usable_memory({"CUDA_VISIBLE_DEVICES": "GPU-c,1"}) == {"2": 1000, "1": 1500}


def test_instances_of_a_divided_gpu_are_not_taken_for_the_whole(install: Install) -> None:
    install(FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b", is_divided=True)))
    with pytest.raises(GpusUnreadable, match="GPU 1 is divided"):
        usable_memory({})
    assert usable_memory({"CUDA_VISIBLE_DEVICES": "0"}) == {"0": 1000}
