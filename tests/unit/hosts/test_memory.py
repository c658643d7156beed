from pathlib import Path

from llmux.hosts.memory import MIB, available_mib, weights_mib


def test_weights_are_the_files_that_hold_them(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(bytes(2 * MIB))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(MIB))
    (tmp_path / "tokenizer.json").write_bytes(bytes(5 * MIB))
    assert weights_mib(str(tmp_path)) == 3


def test_a_model_of_a_hub_has_no_known_size(tmp_path: Path) -> None:
    assert weights_mib(str(tmp_path / "meta-llama" / "Llama-3.1-8B")) == 0


def test_some_memory_is_available() -> None:
    assert available_mib() > 0
