"""What the configuration names and this machine lacks is said, with a remedy."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from llmux.config import machine
from llmux.config.settings import Settings

FREE: dict[str, Any] = {"vllm_command": sys.executable}


def settings(model: dict[str, Any] | None = None, /, **top: Any) -> Settings:
    return Settings.model_validate({"models": {"a": {"model_path": "org/x"} | (model or {})}} | FREE | top)


def warnings(model: dict[str, Any] | None = None, /, **top: Any) -> list[str]:
    found = list(machine.warnings(settings(model, **top)))
    assert all(warning.remedy for warning in found)
    return [f"{warning.path}: {warning.message}" for warning in found]


def problems(model: dict[str, Any] | None = None, /, **top: Any) -> list[str]:
    return [problem.path for problem in machine.problems(settings(model, **top))]


def test_nothing_is_missing(tmp_path: Path) -> None:
    program = tmp_path / "my engine"
    program.write_text("")
    program.chmod(0o755)
    checkpoint = {"criu_path": str(program), "images_dir": str(tmp_path / "a" / "b"), "cuda_plugin_dir": str(tmp_path)}
    model = {"command": str(program), "model_path": str(tmp_path), "eviction": "discard+checkpoint"}
    assert warnings(model, checkpoint=checkpoint, access_log=str(tmp_path / "log"), host="localhost") == []
    assert problems(model, checkpoint=checkpoint, access_log=str(tmp_path / "log")) == []


def test_missing_programs_are_named_with_their_models(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_text("")
    program.chmod(0o755)
    models = {
        "a": {},
        "b": {},
        "c": {"command": sys.executable},
        "d": {"command": "engine", "env": {"PATH": str(tmp_path)}},
        "e": {"command": "engine"},
        "f": {"command": str(tmp_path)},
        "g": {"command": __file__},
        "h": {"command": "python -m engine"},
    }
    described = {name: {"model_path": "x", **keys} for name, keys in models.items()}
    given = Settings.model_validate({"models": described, "vllm_command": "/nowhere/vllm"})
    assert [str(warning) for warning in machine.warnings(given)] == [
        "vllm_command: the program '/nowhere/vllm' does not exist; a, b cannot start (install it, or name another one)",
        "models.e.command: the program 'engine' is not on PATH; e cannot start (install it, or name another one)",
        f"models.f.command: the program '{tmp_path}' is a directory; f cannot start (install it, or name another one)",
        f"models.g.command: the program '{__file__}' is not executable; g cannot start "
        "(install it, or name another one)",
        "models.h.command: is taken as the one program 'python -m engine', which is not on PATH "
        "(put further words into extra_args, or write a small script)",
    ]


def test_a_program_that_no_model_needs_is_missing_too() -> None:
    assert warnings({"command": sys.executable}, vllm_command="/no/vllm") == [
        "vllm_command: the program '/no/vllm' does not exist"
    ]
    given = Settings.model_validate({"models": {"a": {"model_path": "x", "command": sys.executable}}})
    assert list(machine.warnings(given, {"PATH": "/nowhere"})) == []


@pytest.mark.parametrize("path", ["/no/such/model", "./no-such-model", "../no/such", "a/b/c"])
def test_weights_that_are_not_there(path: str) -> None:
    assert warnings({"model_path": path}) == [f"models.a.model_path: {path} does not exist"]


@pytest.mark.parametrize("path", ["gpt2", "Qwen/Qwen3-8B"])
def test_a_hugging_face_id_is_no_path(path: str) -> None:
    assert warnings({"model_path": path}) == []


def test_what_images_need() -> None:
    file = Path(__file__)
    checkpoint = {"criu_path": "/no/criu", "images_dir": str(file / "images"), "cuda_plugin_dir": "/no/plugin"}
    assert warnings({"eviction": "discard+checkpoint"}, checkpoint=checkpoint) == [
        "checkpoint.criu_path: the program '/no/criu' does not exist",
        f"checkpoint.images_dir: images cannot be written to {file / 'images'}: {file} is not a directory",
        "checkpoint.cuda_plugin_dir: /no/plugin does not exist",
    ]
    assert warnings(checkpoint=checkpoint) == []


def test_directories_that_are_files() -> None:
    checkpoint = {"images_dir": __file__, "cuda_plugin_dir": __file__}
    assert problems({"checkpoint_path": __file__}, checkpoint=checkpoint) == [
        "models.a.checkpoint_path",
        "checkpoint.images_dir",
        "checkpoint.cuda_plugin_dir",
    ]


def test_the_access_log(tmp_path: Path) -> None:
    assert warnings(access_log="/no/such/dir/a.log") == ["access_log: the directory /no/such/dir does not exist"]
    assert warnings(access_log=f"{__file__}/a.log") == [f"access_log: {__file__} is not a directory"]
    assert problems(access_log=str(tmp_path)) == ["access_log"]


def test_what_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    log, images = tmp_path / "log", tmp_path / "images"
    model = {"eviction": "discard+checkpoint"}
    checkpoint = {"images_dir": str(images), "criu_path": sys.executable}
    assert warnings(model, access_log=str(log), checkpoint=checkpoint) == [
        f"checkpoint.images_dir: images cannot be written to {images}: {tmp_path} is not writable",
        f"access_log: {log} cannot be written",
    ]


def test_an_address_of_another_machine() -> None:
    (warning,) = warnings(host="192.0.2.1")
    assert warning.startswith("host: this machine cannot listen on 192.0.2.1: ")
    assert warnings(host="*") == []


def test_no_warning_contains_a_secret() -> None:
    given = settings({"model_path": "/models/hush-hush/x"})
    (warning,) = machine.warnings(given, {"MODELS_TOKEN": "hush-hush"})
    assert warning.message == "/models/***/x does not exist"


def test_paths_that_cannot_even_be_looked_at() -> None:
    """Of a directory that may not be searched, and of a name that is too long, ``Path.exists`` raises."""
    long = f"/{'x' * 300}"
    checkpoint = {"images_dir": f"{long}/i", "cuda_plugin_dir": long, "criu_path": long}
    model = {"model_path": long, "command": long, "eviction": "discard+checkpoint"}
    assert problems(model, checkpoint=checkpoint, access_log=long) == []
    assert [
        warning.partition(":")[0] for warning in warnings(model, checkpoint=checkpoint, access_log=f"{long}/a")
    ] == [
        "models.a.command",
        "checkpoint.criu_path",
        "models.a.model_path",
        "checkpoint.cuda_plugin_dir",
        "access_log",
    ]


@pytest.mark.parametrize("model_path", ["s3://bucket/a", "gs://bucket/a/b"])
def test_weights_in_an_object_store_are_not_missed(model_path: str) -> None:
    assert warnings({"model_path": model_path}) == []


def test_the_address_of_a_web_page_is_not_an_id() -> None:
    (warning,) = machine.warnings(settings({"model_path": "https://huggingface.co/Qwen/Qwen3-8B/tree/main"}))
    assert (warning.path, warning.remedy) == ("models.a.model_path", "write Qwen/Qwen3-8B")
