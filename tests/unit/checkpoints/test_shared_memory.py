import mmap
import os
from pathlib import Path

import pytest

from llmux.checkpoints import shared_memory
from llmux.checkpoints.shared_memory import NameTaken


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in place of /dev/shm."""
    directory = tmp_path / "shm-of-the-machine"
    directory.mkdir()
    monkeypatch.setattr(shared_memory, "DIRECTORY", directory)
    return directory


@pytest.fixture
def image(tmp_path: Path) -> Path:
    directory = tmp_path / "image"
    directory.mkdir()
    return directory


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_only_the_engines_files_are_moved_and_put_back(shm: Path, image: Path) -> None:
    (shm / "link_remap.1").write_text("another image's")
    (shm / "psm_other").write_text("another engine's")
    before = shared_memory.list_remapped()
    (shm / "psm_ours").write_text("memory")
    (shm / "link_remap.2").write_text("semaphore")
    names = shared_memory.move_into_image(image, frozenset({inode(shm / "psm_ours")}), before)
    assert names == {"link_remap.2": "link_remap.2", "psm_ours": "psm_ours"}
    assert {path.name for path in shm.iterdir()} == {"link_remap.1", "psm_other"}
    shared_memory.put_back(image, names)
    assert (shm / "psm_ours").read_text() == "memory"


def test_hard_links_stay_hard_links(shm: Path, image: Path) -> None:
    (shm / "link_remap.2").write_text("semaphore")
    os.link(shm / "link_remap.2", shm / "sem.ours")
    names = shared_memory.move_into_image(image, frozenset({inode(shm / "sem.ours")}), frozenset())
    assert names == {"link_remap.2": "link_remap.2", "sem.ours": "link_remap.2"}
    assert list(shm.iterdir()) == []
    shared_memory.put_back(image, names)
    assert (shm / "sem.ours").read_text() == "semaphore"
    assert inode(shm / "sem.ours") == inode(shm / "link_remap.2")


def test_mapped_and_open_files_are_found(shm: Path) -> None:
    mapped, opened, unused = (shm / name for name in ("mapped", "opened", "unused"))
    for path in (mapped, opened, unused):
        path.write_bytes(b"x" * 4096)
    with mapped.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 4096)
    with memory, opened.open():
        used = shared_memory.find_used_inodes([os.getpid()])
        assert {inode(mapped), inode(opened)} <= used
        assert inode(unused) not in used
        assert shared_memory.find_size({inode(mapped), inode(unused)}) >= 8192
        assert shared_memory.find_names(frozenset({inode(mapped)})) == ("mapped",)


def test_unused_files_are_replaced_and_files_in_use_are_not(shm: Path, image: Path) -> None:
    (image / "shm").mkdir()
    for name in ("psm_a", "psm_b"):
        (image / "shm" / name).write_text("from the image")
    names = {"psm_a": "psm_a", "psm_b": "psm_b"}
    (shm / "psm_a").write_text("left over")
    (shm / "psm_b").write_text("in use")
    with (shm / "psm_b").open(), pytest.raises(NameTaken, match="psm_b is in use by another process"):
        shared_memory.put_back(image, names)
    assert [path.name for path in shm.iterdir()] == ["psm_b"]
    shared_memory.put_back(image, names)
    assert {path.read_text() for path in shm.iterdir()} == {"from the image"}


def test_a_failure_to_put_files_back_leaves_none_of_them(shm: Path, image: Path) -> None:
    (image / "shm").mkdir()
    (image / "shm" / "psm_a").write_text("from the image")
    with pytest.raises(FileNotFoundError):
        shared_memory.put_back(image, {"psm_a": "psm_a", "psm_b": "psm_b"})
    assert list(shm.iterdir()) == []


def test_the_lock_has_one_owner_and_needs_no_file(shm: Path) -> None:
    with shared_memory.opened_lock() as one:
        assert shared_memory.try_lock(one)
        with shared_memory.opened_lock() as two:
            assert not shared_memory.try_lock(two)
    with shared_memory.opened_lock() as two:
        assert shared_memory.try_lock(two)
    assert list(shm.iterdir()) == []
