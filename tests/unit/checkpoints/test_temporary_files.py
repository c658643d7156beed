import os
import socket
import stat
from pathlib import Path

import pytest

from llmux.checkpoints import temporary_files
from llmux.checkpoints.temporary_files import DirectoryTaken


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


def test_all_but_sockets_comes_back(tmp_path: Path, image: Path) -> None:
    directory = tmp_path / "engine"
    directory.mkdir(mode=0o700)
    fill(directory)
    temporary_files.take_into_image(image, directory)
    (directory / "deep" / "file").write_text("of a later life")
    temporary_files.put_back(image, directory)
    assert (directory / "deep" / "file").read_text() == "content"
    assert (directory / "deep" / "file").stat().st_mode & 0o777 == 0o640
    assert (directory / "deep" / "deeper").is_dir()
    assert (directory / "link").readlink() == Path("/nowhere")
    assert stat.S_ISFIFO((directory / "pipe").stat().st_mode)
    assert not (directory / "socket").exists()
    assert directory.stat().st_mode & 0o777 == 0o700


def test_links_and_strangers_are_not_replaced(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image / "tmp").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / "engine"
    link.symlink_to(elsewhere)
    with pytest.raises(DirectoryTaken, match="is there already"):
        temporary_files.put_back(image, link)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(DirectoryTaken):
        temporary_files.put_back(image, elsewhere)
    assert elsewhere.is_dir()


def test_failure_leaves_no_directory(tmp_path: Path, image: Path) -> None:
    with pytest.raises(FileNotFoundError):
        temporary_files.put_back(image, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
