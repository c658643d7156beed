"""What is read through NVML, with a stand-in for the library."""

import os
import sys
from collections.abc import Callable, Iterator

import pytest

from llmux.errors import GpusUnreadable
from llmux.gpus import nvml
from llmux.gpus.memory import GpuMemory, Holder
from llmux.gpus.nvml import NvmlReader
from tests.support.fake_nvml import FakeGpu, FakeNvml

Install = Callable[[object], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    nvml._load.cache_clear()
    yield lambda library: monkeypatch.setitem(sys.modules, "pynvml", library)
    nvml._load.cache_clear()


def names(reader: NvmlReader) -> list[str]:
    return [gpu.gpu for gpu in reader.read_memory()]


def test_memory_of_each_gpu(install: Install) -> None:
    install(FakeNvml(FakeGpu("GPU-a", 24_000, 1_500), FakeGpu("GPU-b", 24_000)))
    assert NvmlReader({}).read_memory() == (GpuMemory("GPU-a", 24_000, 1_500), GpuMemory("GPU-b", 24_000, 0))


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
def test_only_gpus_that_the_engine_sees(
    install: Install, visible: str | None, count: int | None, seen: list[str]
) -> None:
    install(FakeNvml(*map(FakeGpu, ("GPU-a", "GPU-b", "GPU-c"))))
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert names(NvmlReader(environment, count)) == seen


def test_holders_are_named_and_added_up(install: Install) -> None:
    first, second = FakeGpu("GPU-a", processes={0: 300, 4_194_304: 500}), FakeGpu("GPU-b", processes={0: 400})
    install(FakeNvml(first, second))
    ours, stranger = NvmlReader({}).read_holders()
    assert (ours.pid, ours.mib) == (os.getpid(), 700)
    assert ours.name
    assert stranger == Holder(4_194_304, "unknown", 500)
    assert str(stranger) == "unknown (pid 4194304, 500 MiB)"


def test_a_holder_whose_share_the_driver_does_not_tell(install: Install) -> None:
    install(FakeNvml(FakeGpu("GPU-a", processes={0: None}), FakeGpu("GPU-b", processes={0: 400})))
    (holder,) = NvmlReader({}).read_holders()
    assert holder.mib is None
    assert "unknown" in str(holder)


@pytest.mark.parametrize("library", [None, FakeNvml(failure="Driver Not Loaded")])
def test_without_a_driver_or_the_package_it_says_so(install: Install, library: object) -> None:
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
