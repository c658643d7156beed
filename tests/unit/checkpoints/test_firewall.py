import errno

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
