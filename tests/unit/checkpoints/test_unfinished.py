from pathlib import Path

import pytest

from llmux.checkpoints import firewall, shared_memory, unfinished

RUN = "4132960d-9796-4242-a41e-9dc7b51b90da"
TABLE = "CRIU-4132960d-9796-4242-a4"


@pytest.fixture
def removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The firewall tables that have been removed."""
    tables: list[str] = []
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(shared_memory, "DIRECTORY", tmp_path / "shm")
    monkeypatch.setattr(firewall, "list_tables", lambda: frozenset({TABLE, "CRIU-another"}))
    monkeypatch.setattr(firewall, "remove_tables", tables.extend)
    return tables


def test_what_a_killed_dump_has_left_is_cleared(tmp_path: Path, removed: list[str]) -> None:
    shm, new = tmp_path / "shm", tmp_path / "images" / "org" / "model" / "images.new"
    new.mkdir(parents=True)
    for name in ("link_remap.1", "psm_own", "psm_other"):
        (shm / name).touch()
    unfinished.note_beginning(new, frozenset({"link_remap.1"}), ["psm_own"])
    (shm / "link_remap.2").touch()
    (new / "dump.log").write_text(f"(00.000000) CRIU run id = {RUN}\n")
    finished = tmp_path / "images" / "org" / "other" / "images"
    finished.mkdir(parents=True)
    unfinished.clear_all(tmp_path / "images")
    assert removed == [TABLE]
    assert {path.name for path in shm.iterdir()} == {"link_remap.1", "psm_other"}
    assert not new.exists()
    assert finished.exists()


def test_without_note_and_log_only_the_directory_goes(tmp_path: Path, removed: list[str]) -> None:
    new = tmp_path / "images.new"
    new.mkdir()
    (tmp_path / "shm" / "link_remap.2").touch()
    unfinished.clear(new)
    unfinished.clear(new)
    assert not new.exists()
    assert removed == []
    assert (tmp_path / "shm" / "link_remap.2").exists()


def test_a_beginning_may_be_forgotten(tmp_path: Path) -> None:
    unfinished.note_beginning(tmp_path, frozenset(), [])
    unfinished.forget_beginning(tmp_path)
    assert list(tmp_path.iterdir()) == []
