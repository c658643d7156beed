"""Which of a model's files its engine reads at its start."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from llmux.engines import files
from llmux.engines.files import in_loading_order, snapshot_files
from tests.support.engines import vllm_engine

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def made(directory: Path, names: Sequence[str]) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_bytes(b"x" * len(name))
    return [directory / name for name in names]


@pytest.mark.parametrize(
    ("found", "read"),
    [
        ([*reversed(SHARDS), "config.json"], ["config.json", *SHARDS]),
        (["pytorch_model.bin", "model.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors", *SHARDS], SHARDS),
        (["consolidated.safetensors", "params.json"], ["params.json", "consolidated.safetensors"]),
        (["model.onnx"], ["model.onnx"]),
    ],
    ids=["shards", "two formats", "two copies", "one copy", "another format"],
)
def test_one_copy_of_the_weights_is_read_after_what_is_small(found: list[str], read: list[str], tmp_path: Path) -> None:
    assert [file.name for file in in_loading_order(made(tmp_path, found))] == read


def test_weights_of_other_programs_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SMALL_BYTES_MAX", 12)
    found = made(tmp_path, ["config.json", "flax_model.msgpack", "m.safetensors"])
    assert [file.name for file in in_loading_order(found)] == ["config.json", "m.safetensors"]


def test_a_model_of_the_hub_is_read_from_its_snapshot(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--org--m"
    made(folder / "snapshots" / "new", SHARDS)
    made(folder / "snapshots" / "old", ["model.safetensors"])
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("new\n")
    engine = vllm_engine(model_path="org/m")
    for environment in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        assert [file.name for file in engine.files_to_load(environment)] == SHARDS
    assert list(engine.files_to_load({"HF_HOME": str(tmp_path / "elsewhere")})) == []


@pytest.mark.parametrize("damage", ["no reference", "no snapshot"])
def test_a_cache_without_the_revision_has_no_files(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "models--org--m"
    folder.mkdir()
    if damage == "no snapshot":
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("gone")
    assert snapshot_files("org/m", {"HF_HUB_CACHE": str(tmp_path)}) == ()


def test_a_local_directory_is_no_model_of_the_hub(tmp_path: Path) -> None:
    made(tmp_path / "weights", ["model.safetensors"])
    engine = vllm_engine(model_path=str(tmp_path / "weights"))
    assert list(engine.files_to_load({"HF_HOME": str(tmp_path)})) == [tmp_path / "weights" / "model.safetensors"]
