import os
from pathlib import Path

import pytest

from llmux.checkpoints import firewall, images, shared_memory
from llmux.checkpoints.manifest import NAME
from llmux.errors import ImageUnusable

RUN = "4132960d-9796-4242-a41e-9dc7b51b90da"
TABLE = "CRIU-4132960d-9796-4242-a4"


def begin(top: Path, model: str = "org/model") -> Path:
    new = images.new_path(images.image_path(top, model, frozen=False))
    images.begin(new, top)
    return new


def test_paths_of_images(tmp_path: Path) -> None:
    assert images.image_path(tmp_path, "m", frozen=False) == tmp_path / "m" / "images"
    assert images.image_path(tmp_path, "org/m", frozen=True) == tmp_path / "org" / "m" / "frozen"


@pytest.mark.parametrize("model", ["", "a//b", "/a", "a/", ".", "a/../b", "a/images", "frozen/b", "a/images.new"])
def test_model_names_that_cannot_be_directories(tmp_path: Path, model: str) -> None:
    with pytest.raises(ImageUnusable, match="cannot be a directory's name"):
        images.image_path(tmp_path, model, frozen=False)


def test_a_new_image_is_private_and_empty(tmp_path: Path) -> None:
    top = tmp_path / "all"
    new = begin(top)
    for directory in (new, new.parent, new.parent.parent, top):
        assert directory.stat().st_mode & 0o777 == 0o700
    (new / "half").touch()
    assert list(begin(top).iterdir()) == []


def test_a_finished_image_replaces_the_old_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        new = begin(tmp_path)
        (new / "deep").mkdir()
        (new / "deep" / "file").write_text(content)
        (new / "link").symlink_to("/nowhere")
        os.mkfifo(new / "pipe")
        images.note_start(new, frozenset(), [])
        path = images.finish(new)
    images.sync(path)
    assert path == tmp_path / "org" / "model" / "images"
    assert (path / "deep" / "file").read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["images"]
    assert not (path / images.START_NOTE).exists()


def test_empty_directories_above_a_removed_image_go_too_except_the_topmost(tmp_path: Path) -> None:
    one, two = images.finish(begin(tmp_path, "org/one")), images.finish(begin(tmp_path, "org/two"))
    images.remove_directory(one, tmp_path)
    assert [entry.name for entry in (tmp_path / "org").iterdir()] == ["two"]
    images.remove_directory(two, tmp_path)
    images.remove_directory(two, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_invalidated_image_has_no_manifest(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    images.invalidate(tmp_path)
    images.invalidate(tmp_path)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_directories_that_others_can_write_to_are_refused(tmp_path: Path, mode: int) -> None:
    path = images.finish(begin(tmp_path))
    images.check_owner(path, tmp_path)
    path.parent.chmod(mode)
    with pytest.raises(ImageUnusable, match="model can be written to by other users"):
        images.check_owner(path, tmp_path)
    with pytest.raises(ImageUnusable):
        begin(tmp_path)


def test_directories_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images.finish(begin(tmp_path))
    stat = Path.stat

    def foreign(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = stat(self, follow_symlinks=follow_symlinks)
        return os.stat_result((*found[:4], 4711, *found[5:])) if self == path.parent else found

    monkeypatch.setattr(Path, "stat", foreign)
    with pytest.raises(ImageUnusable, match="model belongs to another user"):
        images.check_owner(path, tmp_path)


@pytest.fixture
def removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Firewall tables that were removed."""
    tables: list[str] = []
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(shared_memory, "DIRECTORY", tmp_path / "shm")
    monkeypatch.setattr(firewall, "list_tables", lambda: frozenset({TABLE, "CRIU-another"}))
    monkeypatch.setattr(firewall, "remove_tables", tables.extend)
    return tables


def test_everything_that_a_killed_dump_left_is_deleted(tmp_path: Path, removed: list[str]) -> None:
    shm, new = tmp_path / "shm", tmp_path / "images" / "org" / "model" / "images.new"
    new.mkdir(parents=True)
    for name in ("link_remap.1", "psm_own", "psm_other"):
        (shm / name).touch()
    images.note_start(new, frozenset({"link_remap.1"}), ["psm_own"])
    (shm / "link_remap.2").touch()
    (new / "dump.log").write_text(f"(00.000000) CRIU run id = {RUN}\n")
    finished = tmp_path / "images" / "org" / "other" / "images"
    finished.mkdir(parents=True)
    images.delete_all_unfinished(tmp_path / "images")
    assert removed == [TABLE]
    assert {path.name for path in shm.iterdir()} == {"link_remap.1", "psm_other"}
    assert not new.exists()
    assert finished.exists()


def test_without_note_and_log_only_the_directory_is_deleted(tmp_path: Path, removed: list[str]) -> None:
    new = tmp_path / "images.new"
    new.mkdir()
    (tmp_path / "shm" / "link_remap.2").touch()
    images.delete_unfinished(new)
    images.delete_unfinished(new)
    assert not new.exists()
    assert removed == []
    assert (tmp_path / "shm" / "link_remap.2").exists()
