"""What engines were seen to hold, on disk."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from llmux.core.eviction import Eviction
from llmux.core.need import SeenNeed
from llmux.gpus import remembered
from llmux.gpus.remembered import NeedStore, key_of

OFFLOAD = Eviction.parse("offload+keep_running")


def test_what_was_seen_is_there_for_the_next_llmux(tmp_path: Path) -> None:
    seen = SeenNeed(480, {OFFLOAD: 20})
    NeedStore(tmp_path / "needs").write("a", "model", seen)
    assert NeedStore(tmp_path / "needs").read("a") == seen
    assert NeedStore(tmp_path / "needs").read("b") == SeenNeed()


def test_another_way_of_starting_and_other_gpus_have_keys_of_their_own() -> None:
    assert len({key_of("f", "H100"), key_of("g", "H100"), key_of("f", "H200")}) == 3


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "{}", '{"awake_mib": 1}', '{"awake_mib": "1", "residue_mib": {}}'),
        *('{"awake_mib": -1, "residue_mib": {}}', '{"awake_mib": 1, "residue_mib": {"no+such": 1}}'),
        *('{"awake_mib": true, "residue_mib": {}}', '{"awake_mib": 1, "residue_mib": []}', "\xff"),
    ],
)
def test_a_damaged_file_is_as_if_it_were_not_there_and_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content, "latin-1")
    store = NeedStore(tmp_path)
    with capture_logs() as logs:
        assert store.read("a") == SeenNeed()
        assert store.read("a") == SeenNeed()
    assert [entry["log_level"] for entry in logs] == ["warning", "debug"], "said once"
    store.write("a", "model", SeenNeed(5))
    assert store.read("a") == SeenNeed(5)


def test_a_directory_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "needs").write_text("a file")
    store = NeedStore(tmp_path / "needs")
    with capture_logs() as logs:
        store.write("a", "model", SeenNeed(5))
        store.write("a", "model", SeenNeed(6))
        assert store.read("a") == SeenNeed()
    assert [entry["log_level"] for entry in logs] == ["warning", "debug", "debug"]
    assert "cannot be remembered" in logs[0]["event"]


def test_the_oldest_files_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "FILES_MAX", 3)
    store = NeedStore(tmp_path)
    for number in range(5):
        store.write(str(number), "model", SeenNeed(number))
        os.utime(tmp_path / f"{number}.json", (number, number))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2.json", "3.json", "4.json"]


def test_a_failed_replacement_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = NeedStore(tmp_path)
    store.write("a", "model", SeenNeed(5))

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        store.write("a", "model", SeenNeed(6))
    assert store.read("a") == SeenNeed(5)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"], "no temporary file is left"
