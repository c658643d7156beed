import os
from pathlib import Path

import pytest

from llmux.checkpoints import criu
from llmux.checkpoints.criu import Criu, NetworkLock, inspect_criu
from llmux.errors import CriuUnusable
from tests.support import fake_criu


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(criu, "_check_privileges", lambda: None)
    return fake_criu.install(tmp_path)


def test_a_good_one_is_found_on_the_path(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(program).parent}:{os.environ['PATH']}")
    found = inspect_criu("criu", None)
    assert found == Criu(program, "4.2.1", NetworkLock.NFTABLES, unprivileged=os.geteuid() != 0)


@pytest.mark.parametrize(("iptables", "lock"), [("/sbin/iptables", NetworkLock.IPTABLES), (None, NetworkLock.SKIP)])
def test_lock_without_nftables(
    program: str, monkeypatch: pytest.MonkeyPatch, iptables: str | None, lock: NetworkLock
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "no nftables")
    monkeypatch.setattr(criu.shutil, "which", {program: program, "iptables": iptables}.get)
    assert inspect_criu(program, None).network_lock is lock


def test_missing() -> None:
    with pytest.raises(CriuUnusable, match="'no-such-criu' was not found: install criu 4.2"):
        inspect_criu("no-such-criu", None)


@pytest.mark.parametrize("version", ["3.17.1", "4.1.1", "4.1"])
def test_too_old(program: str, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("FAKE_CRIU_VERSION", version)
    with pytest.raises(CriuUnusable, match=f"is version {version}, and versions before 4.2 cannot"):
        inspect_criu(program, None)


def test_another_program() -> None:
    with pytest.raises(CriuUnusable, match="does not tell its version"):
        inspect_criu("true", None)


def test_check_that_fails(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CRIU", "check fails")
    with pytest.raises(CriuUnusable, match=r"'criu check' says: Error .criu/cr-check.c:5.: no such feature"):
        inspect_criu(program, None)


def test_missing_privileges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tllmux\nCapEff:\t0000000000001000\n")
    monkeypatch.setattr(criu, "STATUS", status)
    with pytest.raises(CriuUnusable, match="neither CAP_SYS_ADMIN nor CAP_CHECKPOINT_RESTORE: run it as root"):
        inspect_criu(fake_criu.install(tmp_path), None)


def test_command_lines(tmp_path: Path) -> None:
    both = (
        *("-v4", "--shell-job", "--ext-unix-sk", "--tcp-established", "--file-locks", "--enable-external-masters"),
        *("--manage-cgroups=ignore", "--network-lock", "nftables"),
    )
    one = Criu("/criu", "4.2.1", NetworkLock.NFTABLES, tmp_path / "missing")
    assert one.dump_command(7, Path("/d")) == (
        *("/criu", "dump", "--images-dir", "/d", "--log-file", "dump.log", *both),
        *("--tree", "7", "--link-remap", "--ghost-limit", "512M"),
    )
    assert one.restore_command(Path("/d")) == (
        *("/criu", "restore", "--images-dir", "/d", "--log-file", "restore.log", *both),
        *("--restore-detached", "--restore-sibling"),
    )


def test_plugins_and_privileges_in_the_command_lines(tmp_path: Path) -> None:
    one = Criu("/criu", "4.2.1", NetworkLock.SKIP, tmp_path, unprivileged=True)
    for command in (one.dump_command(7, Path("/d")), one.restore_command(Path("/d"))):
        assert command[command.index("-L") + 1] == str(tmp_path)
        assert "--unprivileged" in command
