"""The virtual GPU as llmux sees a real one."""

import os
from pathlib import Path

import pytest

from llmux.errors import GpusUnreadable
from llmux.gpus.memory import GpuMemory, GpuProcess, StartNeed
from llmux.simulation.gpus import LedgerReader, find_virtual_gpu
from llmux.simulation.ledger import Ledger


def test_the_ledger_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    ledger.allocate(os.getpid(), 300, "a")
    ledger.allocate(os.getppid(), 0, "b")
    reader = LedgerReader((ledger.path,))
    assert reader.read_memory() == (GpuMemory(str(ledger.path), 1000, 300),)
    assert reader.read_processes() == (GpuProcess(os.getpid(), "a", 300, str(ledger.path)),)


def test_a_ledger_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GpusUnreadable, match="cannot be opened"):
        LedgerReader((tmp_path / "none.json",)).read_memory()


@pytest.mark.parametrize(
    ("arguments", "environment", "need"),
    [
        (["--sim-gpu-ledger", "/gpu.json"], {}, StartNeed(share=0.92)),
        (["--sim-gpu-ledger=/gpu.json", "--sim-gpu-memory", "900"], {}, StartNeed(mib=900)),
        (["--gpu-memory-utilization", "0.5"], {"LLMUX_SIM_LEDGER": "/gpu.json"}, StartNeed(share=0.5)),
        (["--gpu-mem", "0.4", "--sim-gpu-ledger", "/gpu.json"], {}, StartNeed(share=0.4)),
        (["--model-path", "m", "--mem-fraction-static=0.3"], {"LLMUX_SIM_LEDGER": "/gpu.json"}, StartNeed(share=0.3)),
        (["run", "--rm", "image", "--sim-gpu-memory", "9", "--sim-gpu-ledger", "/gpu.json"], {}, StartNeed(mib=9)),
        (["run", "image"], {"LLMUX_SIM_LEDGER": "/gpu.json", "LLMUX_SIM_GPU_MEMORY": "7"}, StartNeed(mib=7)),
        (["run", "image", "--sim-gpu-ledger", "/gpu.json"], {}, None),
        (["--sim-gpu-ledger", "/gpu.json", "--sim-gpu-memory", "much"], {}, None),
    ],
)
def test_an_engine_with_a_ledger(arguments: list[str], environment: dict[str, str], need: StartNeed | None) -> None:
    assert find_virtual_gpu(arguments, environment) == (LedgerReader((Path("/gpu.json"),)), need)


@pytest.mark.parametrize("arguments", [[], ["--tensor-parallel-size", "2"], ["--sim-gpu-ledger"]])
def test_an_engine_without_one(arguments: list[str]) -> None:
    assert find_virtual_gpu(arguments, {}) is None
