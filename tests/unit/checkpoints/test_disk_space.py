from pathlib import Path
from types import SimpleNamespace

import pytest

from llmux.checkpoints import disk_space

GIB = 1 << 30


def test_disk(tmp_path: Path) -> None:
    assert disk_space.lack_of_disk(tmp_path, 0) is None
    assert "the image needs 1048576.06 GiB in" in (disk_space.lack_of_disk(tmp_path, GIB << 20) or "")


def test_disk_that_is_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "is_in_memory", lambda directory: True)
    monkeypatch.setattr(disk_space.psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB))
    assert "that is in memory, of which 1.00 GiB are free" in (disk_space.lack_of_disk(tmp_path, GIB) or "")


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space.psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB))
    assert disk_space.lack_of_memory(GIB) is None
    assert disk_space.lack_of_memory(2 * GIB) == "it needs 2.00 GiB of memory, of which 1.00 GiB are free"


def test_kinds_of_file_systems() -> None:
    assert disk_space.is_in_memory(Path("/dev/shm"))
    assert not disk_space.is_in_memory(Path("/proc"))
