"""What the checks of criu, of CUDA's suspension and of the directory of images say."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from llmux.config.settings import Settings
from llmux.diagnosis.findings import Finding, Level
from llmux.diagnosis.images import check_images
from tests.support import fake_criu

DUMPED = {"eviction": "discard+checkpoint"}


def settings(directory: Path, model: dict[str, Any], **checkpoint: Any) -> Settings:
    section = {"criu_path": fake_criu.install(directory), "images_dir": str(directory / "images"), **checkpoint}
    return Settings.model_validate({"models": {"m": {"model_path": "x"} | model}, "checkpoint": section})


def findings(configured: Settings | None, *, has_gpu: bool = False) -> dict[str, Finding]:
    return {one.what.partition(" /")[0]: one for one in check_images(configured, has_gpu=has_gpu)}


def test_a_criu_that_works_and_a_directory_with_room(tmp_path: Path) -> None:
    found = findings(settings(tmp_path, DUMPED))
    has_rights = os.geteuid() == 0
    assert found["criu"].level is (Level.OK if has_rights else Level.ERROR)
    assert ("4.2.1" if has_rights else "CAP_SYS_ADMIN") in found["criu"].found
    assert found["images_dir"].level is Level.OK


def test_an_old_criu_is_an_error_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CRIU_VERSION", "3.17.1")
    needed = findings(settings(tmp_path, DUMPED))["criu"]
    assert needed.level is Level.ERROR and "3.17.1" in needed.found and "4.2" in needed.remedy
    assert findings(settings(tmp_path, {}))["criu"].level is Level.UNKNOWN


def test_a_missing_criu_is_no_error_without_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert findings(None)["criu"].level is Level.UNKNOWN


def test_images_that_others_can_change_are_refused(tmp_path: Path) -> None:
    configured = settings(tmp_path, DUMPED)
    (tmp_path / "images").mkdir()
    (tmp_path / "images").chmod(0o777)
    one = findings(configured)["images_dir"]
    assert one.level is Level.ERROR and "chmod" in one.found


def test_a_directory_without_room_for_the_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    with (weights / "model.safetensors").open("wb") as file:
        file.truncate(8 << 40)
    one = findings(settings(tmp_path, {**DUMPED, "model_path": str(weights)}))["images_dir"]
    assert one.level is Level.WARNING and "8192.0 GiB" in one.found


def test_images_in_memory_are_warned_of(tmp_path: Path) -> None:
    one = findings(settings(tmp_path, DUMPED, images_dir="/dev/shm"))["images_dir"]
    assert one.level is not Level.OK


@pytest.mark.parametrize("is_needed", [True, False])
def test_suspension_needs_a_binding_or_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_needed: bool
) -> None:
    monkeypatch.setattr("llmux.diagnosis.images.BINDING", "no_such_package.bindings")
    model = {"eviction": "retain+cuda_suspend"} if is_needed else {}
    program = tmp_path / "cuda-checkpoint"
    configured = settings(tmp_path, model, cuda_checkpoint_path=str(program))
    one = findings(configured, has_gpu=True)["CUDA suspend"]
    assert one.level is (Level.ERROR if is_needed else Level.UNKNOWN)
    assert "llmux-gateway[cuda]" in one.remedy
    program.write_text("#!/bin/sh\necho Version 570.86.10. Copyright; echo --action lock\n")
    program.chmod(0o755)
    one = findings(configured, has_gpu=True)["CUDA suspend"]
    assert one.level is Level.OK and one.found == f"by {program}, version 570.86.10"
    program.write_text("#!/bin/sh\necho Version 550.54.09. Copyright; echo --toggle\n")
    one = findings(configured, has_gpu=True)["CUDA suspend"]
    assert one.level is (Level.ERROR if is_needed else Level.UNKNOWN)
    assert "550.54.09" in one.found and "driver 555" in one.found
    program.write_text("#!/bin/sh\nexit 1\n")
    one = findings(configured, has_gpu=True)["CUDA suspend"]
    assert one.level is Level.OK and "cannot be read" in one.found


def test_a_plugin_needs_the_program_that_it_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    configured = settings(tmp_path, DUMPED, cuda_plugin_dir=str(plugins))
    assert "suspends CUDA processes itself" in findings(configured, has_gpu=True)["criu's CUDA plugin"].found
    (plugins / "cuda_plugin.so").touch()
    one = findings(configured, has_gpu=True)["criu's CUDA plugin"]
    assert one.level is Level.ERROR and "not on PATH" in one.found
    (tmp_path / "cuda-checkpoint").write_text("#!/bin/sh\n")
    (tmp_path / "cuda-checkpoint").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert findings(configured, has_gpu=True)["criu's CUDA plugin"].level is Level.OK


def test_an_object_store_is_asked(tmp_path: Path) -> None:
    reachable = settings(tmp_path, {}, object_store={"url": (tmp_path / "bucket").as_uri()})
    (one,) = (one for name, one in findings(reachable).items() if name.startswith("object store"))
    assert one.level is Level.OK
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        keys = {"bucket": "b", "access_key": "a", "secret_key": "s"}
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        unreachable = settings(tmp_path, {}, object_store={"endpoint": endpoint, **keys})
        (one,) = (one for name, one in findings(unreachable).items() if name.startswith("object store"))
    assert one.level is Level.ERROR and "keys and the network" in one.remedy
