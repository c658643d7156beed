import json
import os
from pathlib import Path

import pytest

from llmux.engines import prompt_files
from llmux.engines.prompt_files import DRAFT, MANIFEST, PromptFiles, SavedPrompt, identity_of


def written(files: PromptFiles, size_bytes: int = 100) -> str:
    name = files.new_name()
    (files.directory / name).write_bytes(b"x" * size_bytes)
    return name


def add(files: PromptFiles, size_bytes: int = 100) -> SavedPrompt:
    prompt = files.add(written(files, size_bytes), 10, ())
    assert prompt is not None
    return prompt


def opened(directory: Path, identity: str = "model", budget_bytes: int = 1000) -> PromptFiles:
    files = PromptFiles(directory, budget_bytes)
    files.open(identity)
    return files


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "prompts" / "model"


def test_files_are_believed_by_the_next_start(directory: Path) -> None:
    files = opened(directory)
    first, second = add(files), add(files)
    assert opened(directory).prompts == (second, first)
    assert names(directory) == {first.file, second.file, MANIFEST}


def test_nobody_else_can_read_what_was_said(directory: Path) -> None:
    prompt = add(opened(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / prompt.file).stat().st_mode & 0o777 == 0o600


def test_files_of_another_identity_are_deleted(directory: Path) -> None:
    add(opened(directory))
    assert opened(directory, "another model").prompts == ()
    assert names(directory) == {MANIFEST}


def test_files_from_before_a_boot_are_deleted(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(opened(directory))
    boot = directory.parent / "boot_id"
    boot.write_text("another boot\n")
    monkeypatch.setattr(prompt_files, "BOOT_ID", boot)
    assert opened(directory).prompts == ()
    assert names(directory) == {MANIFEST}


@pytest.mark.parametrize("damage", ["shorter", "longer", "rewritten", "gone", "directory", "link"])
def test_a_file_that_is_not_as_it_was_is_not_believed(directory: Path, tmp_path: Path, damage: str) -> None:
    files = opened(directory)
    good, bad = add(files), add(files)
    path = directory / bad.file
    match damage:
        case "shorter":
            os.truncate(path, 99)
        case "longer":
            path.write_bytes(b"x" * 101)
        case "rewritten":
            path.write_bytes(b"y" * 100)
            os.utime(path, ns=(0, bad.modified_ns + 1))
        case "gone":
            path.unlink()
        case "directory":
            path.unlink()
            path.mkdir()
        case "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
    assert not files.is_believed(bad) and files.is_believed(good)
    assert opened(directory).prompts == (good,)
    assert not (directory / bad.file).is_file()
    assert opened(directory).prompts == (good,)


def test_what_the_manifest_does_not_list_is_deleted_if_it_is_ours(directory: Path) -> None:
    files = opened(directory)
    listed = add(files)
    unlisted = written(files)
    (directory / DRAFT).write_text("half a mani")
    (directory / "notes.txt").write_text("somebody's")
    opened(directory)
    assert unlisted not in names(directory)
    assert names(directory) == {listed.file, MANIFEST, "notes.txt"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000, b'{"format": 2, "prompts": []}']
)
def test_a_manifest_that_cannot_be_read_lists_nothing(directory: Path, content: bytes) -> None:
    add(opened(directory))
    (directory / MANIFEST).write_bytes(content)
    assert opened(directory).prompts == ()
    assert names(directory) <= {MANIFEST}


def test_a_manifest_that_names_a_file_elsewhere_is_not_believed(directory: Path, tmp_path: Path) -> None:
    files = opened(directory)
    prompt = add(files)
    precious = tmp_path / "precious"
    (directory / prompt.file).rename(precious)
    document = json.loads((directory / MANIFEST).read_text())
    document["prompts"][0]["file"] = "../../precious"
    (directory / MANIFEST).write_text(json.dumps(document))
    assert opened(directory).prompts == ()
    assert precious.exists()


def test_the_least_recently_used_files_make_room(directory: Path) -> None:
    files = opened(directory, budget_bytes=300)
    first, second, third = add(files), add(files), add(files)
    assert files.make_room(150, ())
    assert files.prompts == (third,)
    assert names(directory) == {third.file, MANIFEST}
    assert first.file != second.file


def test_the_file_that_is_replaced_makes_room_before_others(directory: Path) -> None:
    files = opened(directory, budget_bytes=300)
    first, second, third = add(files), add(files), add(files)
    assert files.make_room(100, (), third)
    assert files.prompts == (second, first)


def test_nothing_is_deleted_for_what_cannot_fit(directory: Path) -> None:
    files = opened(directory, budget_bytes=300)
    first, second = add(files), add(files)
    assert not files.make_room(201, (second,))
    assert not files.make_room(301, ())
    assert files.prompts == (second, first)


def test_a_file_that_turns_out_too_large_is_deleted(directory: Path) -> None:
    files = opened(directory, budget_bytes=300)
    first = add(files, 200)
    name = written(files, 101)
    assert files.add(name, 10, (first,)) is None
    assert files.prompts == (first,)
    assert names(directory) == {first.file, MANIFEST}


def test_a_replaced_file_is_deleted_only_when_the_new_one_is_believed(directory: Path) -> None:
    files = opened(directory)
    old, other = add(files), add(files)
    new = files.add(written(files), 20, (), old)
    assert new is not None
    assert files.prompts == (new, other)
    assert names(directory) == {new.file, other.file, MANIFEST}


def test_a_smaller_budget_keeps_the_most_recently_used(directory: Path) -> None:
    files = opened(directory)
    add(files, 100)
    second, third = add(files, 100), add(files, 100)
    assert opened(directory, budget_bytes=250).prompts == (third, second)
    assert names(directory) == {second.file, third.file, MANIFEST}


def test_all_is_deleted(directory: Path) -> None:
    files = opened(directory)
    add(files)
    files.delete_all()
    assert names(directory) == set() and files.prompts == ()


def test_the_identity_depends_on_files_and_on_arguments_that_change_the_cache(tmp_path: Path) -> None:
    model, adapter = tmp_path / "model.gguf", tmp_path / "adapter.gguf"
    model.write_bytes(b"model")
    adapter.write_bytes(b"adapter")
    plain = ["-c", "4096", "--lora", f"{adapter},{tmp_path / 'missing'}"]
    before = identity_of([model], plain)
    assert before == identity_of([model], [*plain, "--port", "1234", "-t", "2", "--metrics", "-np", "4"])
    assert before != identity_of([model], ["-c", "8192", *plain[2:]])
    assert before != identity_of([model], [*plain, "--cache-type-k", "q8_0"])
    assert before != identity_of([model], plain[:2])
    assert before != identity_of([adapter], plain)
    os.utime(adapter, ns=(0, 1))
    assert before != identity_of([model], plain)


def test_the_identity_notices_that_the_model_was_replaced(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one")
    before = identity_of([model], [])
    (tmp_path / "new").write_bytes(b"two")
    os.utime(tmp_path / "new", ns=(0, model.stat().st_mtime_ns + 1))
    (tmp_path / "new").rename(model)
    assert identity_of([model], []) != before
