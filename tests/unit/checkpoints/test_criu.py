"""criu's checks, command lines and log, with a program in criu's place."""

import os
from pathlib import Path

import pytest

from llmux.checkpoints import criu
from llmux.checkpoints.criu import Criu, NetworkLock, find_error, find_reason, inspect_criu, read_error
from llmux.errors import CriuUnusable
from tests.support import fake_criu

NOISE = "(00.000011) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
CAUSE = "(00.033)  1234: Error (criu/proc_parse.c:502): Unknown shit 600 (anon_inode:[io_uring])\n"
CONSEQUENCES = (
    "(00.034) Error (criu/proc_parse.c:700): Can't open 12's mapfile link 7f: No such\n"
    "(00.035) Error (criu/cr-dump.c:1400): Collect mappings (pid: 12) failed with -1\n"
    "(00.036) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"
)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(criu, "_check_privileges", lambda: None)
    return fake_criu.install(tmp_path)


def test_a_working_criu_is_found_on_the_path(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(program).parent}:{os.environ['PATH']}")
    found = inspect_criu("criu", None)
    assert found == Criu(program, "4.2.1", NetworkLock.NFTABLES, unprivileged=os.geteuid() != 0)


@pytest.mark.parametrize(("iptables", "lock"), [("/sbin/iptables", NetworkLock.IPTABLES), (None, NetworkLock.SKIP)])
def test_network_lock_without_nftables(
    program: str, monkeypatch: pytest.MonkeyPatch, iptables: str | None, lock: NetworkLock
) -> None:
    monkeypatch.setenv("FAKE_CRIU", "no nftables")
    monkeypatch.setattr(criu.shutil, "which", {program: program, "iptables": iptables}.get)
    assert inspect_criu(program, None).network_lock is lock


def test_a_missing_program_is_refused_with_a_remedy() -> None:
    with pytest.raises(CriuUnusable, match="'no-such-criu' was not found: install criu 4.2"):
        inspect_criu("no-such-criu", None)


@pytest.mark.parametrize("version", ["3.17.1", "4.1.1", "4.1"])
def test_a_version_that_is_too_old_is_refused(program: str, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("FAKE_CRIU_VERSION", version)
    with pytest.raises(CriuUnusable, match=f"is version {version}, and versions before 4.2 cannot"):
        inspect_criu(program, None)


def test_a_program_that_is_not_criu_is_refused() -> None:
    with pytest.raises(CriuUnusable, match="does not tell its version"):
        inspect_criu("true", None)


def test_a_failed_check_is_reported_with_its_cause(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CRIU", "check fails")
    with pytest.raises(CriuUnusable, match=r"'criu check' says: Error .criu/cr-check.c:5.: no such feature"):
        inspect_criu(program, None)


def test_missing_capabilities_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_plugin_directory_and_missing_privileges_in_the_command_lines(tmp_path: Path) -> None:
    one = Criu("/criu", "4.2.1", NetworkLock.SKIP, tmp_path, unprivileged=True)
    for command in (one.dump_command(7, Path("/d")), one.restore_command(Path("/d"))):
        assert command[command.index("-L") + 1] == str(tmp_path)
        assert "--unprivileged" in command


def test_the_first_cause_is_found() -> None:
    assert find_error(NOISE + CAUSE + CONSEQUENCES) == (
        "Error (criu/proc_parse.c:502): Unknown shit 600 (anon_inode:[io_uring])"
    )


@pytest.mark.parametrize(
    "consequence",
    [
        "Error (criu/cr-dump.c:2111): Dumping FAILED.",
        "Error (criu/cr-restore.c:2605): Restoring FAILED.",
        "Error (criu/mem.c:1): Can't open vma",
        "Error (criu/files.c:1): Unable to open fd=3 id=0x7",
        "Error (criu/cr-restore.c:1): 12 exited, status=1",
        "Error (criu/cr-restore.c:1): 12 killed by signal 11: Segmentation fault",
    ],
)
def test_a_consequence_is_found_only_without_a_cause(consequence: str) -> None:
    assert find_error(f"(00.1) {consequence}\n") == consequence
    assert (
        find_error(f"(00.1) {consequence}\n(00.2) Error (criu/a.c:1): the cause\n") == "Error (criu/a.c:1): the cause"
    )


def test_harmless_errors_are_ignored() -> None:
    assert find_error(NOISE) is None


def test_without_an_error_the_end_of_the_log_is_the_reason() -> None:
    assert find_reason("x" * 400 + "usage: criu") == "x" * 289 + "usage: criu"
    assert find_reason(" \n") == "criu said nothing"


def test_a_missing_log_has_no_error(tmp_path: Path) -> None:
    assert read_error(tmp_path / "dump.log") is None
