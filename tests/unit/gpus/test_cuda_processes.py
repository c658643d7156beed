"""Which processes of an engine are taken to use a GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmux.gpus import cuda_processes
from llmux.gpus.cuda_processes import candidates, users_of_gpu


@pytest.fixture
def tree() -> Iterator[tuple[int, int]]:
    """Two processes, of which the second has a name in its command line."""
    code = "import signal; signal.pause()"
    processes = [subprocess.Popen((sys.executable, "-S", "-c", code, *words)) for words in ((), ("VLLM::EngineCore",))]
    yield processes[0].pid, processes[1].pid
    for process in processes:
        process.kill()
        process.wait()


def test_the_drivers_list_goes_before_names(tree: tuple[int, int]) -> None:
    assert candidates(tree, {tree[0], os.getpid()}, ("EngineCore",)) == tree[:1]
    assert users_of_gpu(tree, {tree[0]}) == tree[:1]


def test_numbers_of_another_container_are_nobodys(tree: tuple[int, int]) -> None:
    assert users_of_gpu(tree, {1}) == ()
    assert candidates(tree, {1}, ("EngineCore",)) == tree[1:]


def test_an_open_gpu_is_a_sign(tree: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for pid, target in zip(tree, ("/dev/nvidiactl", "/dev/nvidia0"), strict=True):
        directory = tmp_path / str(pid) / "fd"
        directory.mkdir(parents=True)
        (directory / "3").symlink_to(target)
    monkeypatch.setattr(cuda_processes, "PROC", tmp_path)
    assert users_of_gpu(tree, ()) == tree[1:], "nvidiactl alone is opened by whoever only counts GPUs"


def test_a_mapped_gpu_is_a_sign(tree: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / str(tree[0])).mkdir()
    (tmp_path / str(tree[0]) / "maps").write_text("7f00-7f01 rw-s 00000000 00:05 1 /dev/nvidia1\n")
    monkeypatch.setattr(cuda_processes, "PROC", tmp_path)
    assert users_of_gpu(tree, ()) == tree[:1]


def test_without_any_sign_the_driver_is_asked_of_all(tree: tuple[int, int]) -> None:
    assert candidates(tree, (), ("nothing like it",)) == tree
    assert candidates(tree, ()) == tree
