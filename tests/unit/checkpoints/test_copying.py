import os
import socket
import stat
from pathlib import Path

import pytest

from llmux.checkpoints import copying
from llmux.checkpoints.copying import DirectoryTaken, copy_sparse


@pytest.mark.parametrize(
    ("size", "parts"),
    [(0, {}), (10, {0: b"0123456789"}), (8 << 20, {}), (8 << 20, {1 << 20: b"in the middle", (8 << 20) - 4: b"tail"})],
)
def test_a_copy_is_equal_and_as_sparse(tmp_path: Path, size: int, parts: dict[int, bytes]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(size)
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
    source.chmod(0o640)
    os.utime(source, ns=(1_000_000_000, 2_000_000_000))
    copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks
    assert target.stat().st_mode == source.stat().st_mode
    assert target.stat().st_mtime_ns == 2_000_000_000


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    with pytest.raises(FileExistsError):
        copy_sparse(source, target)
    assert target.read_text() == "old"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    directory = tmp_path / "image"
    directory.mkdir()
    return directory


def fill(directory: Path) -> None:
    (directory / "deep" / "deeper").mkdir(parents=True)
    (directory / "deep" / "file").write_text("content")
    (directory / "deep" / "file").chmod(0o640)
    (directory / "link").symlink_to("/nowhere")
    os.mkfifo(directory / "pipe", 0o600)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(directory / "socket"))


def test_a_temporary_directory_comes_back_without_its_sockets(tmp_path: Path, image: Path) -> None:
    directory = tmp_path / "engine"
    directory.mkdir(mode=0o700)
    fill(directory)
    copying.save_temporary_directory(image, directory)
    (directory / "deep" / "file").write_text("of a later run")
    copying.restore_temporary_directory(image, directory)
    assert (directory / "deep" / "file").read_text() == "content"
    assert (directory / "deep" / "file").stat().st_mode & 0o777 == 0o640
    assert (directory / "deep" / "deeper").is_dir()
    assert (directory / "link").readlink() == Path("/nowhere")
    assert stat.S_ISFIFO((directory / "pipe").stat().st_mode)
    assert not (directory / "socket").exists()
    assert directory.stat().st_mode & 0o777 == 0o700


def test_links_and_directories_of_other_users_are_not_replaced(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image / "tmp").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "engine"
    link.symlink_to(elsewhere)
    with pytest.raises(DirectoryTaken, match="is there already"):
        copying.restore_temporary_directory(image, link)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(DirectoryTaken):
        copying.restore_temporary_directory(image, elsewhere)
    assert elsewhere.is_dir()


def test_a_failed_copy_leaves_no_directory(tmp_path: Path, image: Path) -> None:
    with pytest.raises(FileNotFoundError):
        copying.restore_temporary_directory(image, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
