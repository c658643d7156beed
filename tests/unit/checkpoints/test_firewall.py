import errno
from pathlib import Path

import pytest

from llmux.checkpoints import firewall, netlink


def test_only_criu_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "list_tables", lambda: ["filter", "CRIU-1"])
    assert firewall.list_tables() == {"CRIU-1"}


def test_a_kernel_without_tables_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[str]:
        raise PermissionError

    monkeypatch.setattr(netlink, "list_tables", refuse)
    assert firewall.list_tables() == frozenset()


def test_tables_that_are_gone_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def delete(name: str) -> None:
        asked.append(name)
        raise OSError(errno.ENOENT if name == "CRIU-1" else errno.EPERM, "no")

    monkeypatch.setattr(netlink, "delete_table", delete)
    with pytest.raises(OSError, match="no"):
        firewall.remove_tables(["CRIU-1", "CRIU-2"])
    assert asked == ["CRIU-1", "CRIU-2"]


def test_tables_of_one_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "dump.log"
    log.write_text("(00.000000) CRIU run id = 4132960d-9796-4242-a41e-9dc7b51b90da\n")
    ours = "CRIU-4132960d-9796-4242-a4"
    monkeypatch.setattr(netlink, "list_tables", lambda: [ours, "CRIU-5d063511-d555-4bb4-8e", "filter"])
    assert firewall.find_tables(log) == [ours]
    log.write_text("nothing\n")
    assert firewall.find_tables(log) == []
    assert firewall.find_tables(tmp_path / "missing") == []
