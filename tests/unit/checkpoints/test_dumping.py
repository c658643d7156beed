"""Whether an image fits on the disk. The rest of a dump is tested with the checkpointer and with the real criu."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from llmux.checkpoints import dumping

GIB = 1 << 30


def test_an_image_that_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    assert dumping.lack_of_disk(tmp_path, 0) is None
    assert "the image needs 1048576.06 GiB in" in (dumping.lack_of_disk(tmp_path, GIB << 20) or "")


def test_an_image_in_a_file_system_in_memory_must_fit_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumping, "is_in_memory", lambda directory: True)
    monkeypatch.setattr(dumping.psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB))
    assert "that is in memory, of which 1.00 GiB are free" in (dumping.lack_of_disk(tmp_path, GIB) or "")


def test_file_systems_in_memory() -> None:
    assert dumping.is_in_memory(Path("/dev/shm"))
    assert not dumping.is_in_memory(Path("/proc"))
