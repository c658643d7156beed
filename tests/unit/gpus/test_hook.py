"""The hook that replaces NVML is found by its name, or the operator is told why not."""

import sys
from pathlib import Path

import pytest

from llmux.config.settings import Settings
from llmux.gpus.hook import VARIABLE, GpuHookUnusable, load_gpu_hook
from llmux.gpus.nvml import NvmlReader
from llmux.server.build import build_headroom
from llmux.simulation.gpus import HOOK, LedgerReader, find_virtual_gpu


def test_without_the_variable_there_is_no_hook() -> None:
    assert load_gpu_hook({}) is None
    assert load_gpu_hook({VARIABLE: ""}) is None


def test_the_function_is_imported_by_its_name() -> None:
    assert load_gpu_hook({VARIABLE: HOOK}) is find_virtual_gpu


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("llmux.simulation.gpus", "not of the form module:function"),
        (":f", "not of the form module:function"),
        ("no_such_module:f", "fails with ModuleNotFoundError: No module named 'no_such_module'"),
        ("llmux.simulation.gpus:nothing", "the module llmux.simulation.gpus has no nothing"),
        ("llmux.simulation.gpus:HOOK", "HOOK is not a function"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason_and_the_remedy(value: str, reason: str) -> None:
    with pytest.raises(GpuHookUnusable, match=reason) as raised:
        load_gpu_hook({VARIABLE: value})
    assert str(raised.value).startswith(f"LLMUX_GPU_READER={value}: ")
    assert "or unset it" in str(raised.value)


def test_a_module_that_raises_is_named_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_reader.py").write_text("raise RuntimeError('no driver')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(GpuHookUnusable, match="fails with RuntimeError: no driver"):
        load_gpu_hook({VARIABLE: "broken_reader:f"})


def test_the_hook_decides_engine_by_engine_and_nvml_reads_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"simulated": {"model_path": "x", "extra_args": ["--sim-gpu-ledger", "/gpu.json"]}, "real": {}}
    settings = Settings.model_validate({"models": {name: {"model_path": "x", **keys} for name, keys in models.items()}})
    assert isinstance(build_headroom(settings, "simulated").reader, NvmlReader)
    monkeypatch.setenv(VARIABLE, HOOK)
    assert build_headroom(settings, "simulated").reader == LedgerReader((Path("/gpu.json"),))
    assert isinstance(build_headroom(settings, "real").reader, NvmlReader)
