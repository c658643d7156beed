import os
from pathlib import Path

import pytest

from llmux.checkpoints import images
from llmux.checkpoints.manifest import NAME
from llmux.errors import ImageUnusable


def begin(top: Path, model: str = "org/model") -> Path:
    new = images.place_of_new(images.image_path(top, model, frozen=False))
    images.begin(new, top)
    return new


def test_paths(tmp_path: Path) -> None:
    assert images.image_path(tmp_path, "m", frozen=False) == tmp_path / "m" / "images"
    assert images.image_path(tmp_path, "org/m", frozen=True) == tmp_path / "org" / "m" / "frozen"


@pytest.mark.parametrize("model", ["", "a//b", "/a", "a/", ".", "a/../b", "a/images", "frozen/b", "a/images.new"])
def test_names_that_cannot_be_directories(tmp_path: Path, model: str) -> None:
    with pytest.raises(ImageUnusable, match="cannot be a directory's name"):
        images.image_path(tmp_path, model, frozen=False)


def test_new_image_is_private_and_empty(tmp_path: Path) -> None:
    top = tmp_path / "all"
    new = begin(top)
    for directory in (new, new.parent, new.parent.parent, top):
        assert directory.stat().st_mode & 0o777 == 0o700
    (new / "half").touch()
    assert list(begin(top).iterdir()) == []


def test_finished_image_replaces_the_old_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        new = begin(tmp_path)
        (new / "deep").mkdir()
        (new / "deep" / "file").write_text(content)
        (new / "link").symlink_to("/nowhere")
        os.mkfifo(new / "pipe")
        path = images.finish(new)
    images.sync(path)
    assert path == tmp_path / "org" / "model" / "images"
    assert (path / "deep" / "file").read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["images"]


def test_removed_with_empty_directories_above_but_not_the_topmost(tmp_path: Path) -> None:
    one, two = images.finish(begin(tmp_path, "org/one")), images.finish(begin(tmp_path, "org/two"))
    images.remove(one, tmp_path)
    assert [entry.name for entry in (tmp_path / "org").iterdir()] == ["two"]
    images.remove(two, tmp_path)
    images.remove(two, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_spent_image_has_no_manifest(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    images.spend(tmp_path)
    images.spend(tmp_path)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_directories_of_others_are_refused(tmp_path: Path, mode: int) -> None:
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
