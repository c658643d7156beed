from pathlib import Path

import pytest

from llmux.checkpoints.criu_log import find_error, find_reason, read_error

NOISE = "(00.000011) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
CAUSE = "(00.033)  1234: Error (criu/proc_parse.c:502): Unknown shit 600 (anon_inode:[io_uring])\n"
DERIVED = (
    "(00.034) Error (criu/proc_parse.c:700): Can't open 12's mapfile link 7f: No such\n"
    "(00.035) Error (criu/cr-dump.c:1400): Collect mappings (pid: 12) failed with -1\n"
    "(00.036) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"
)


def test_first_cause_counts() -> None:
    assert find_error(NOISE + CAUSE + DERIVED) == (
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
def test_a_consequence_is_told_only_where_nothing_else_is(consequence: str) -> None:
    assert find_error(f"(00.1) {consequence}\n") == consequence
    assert (
        find_error(f"(00.1) {consequence}\n(00.2) Error (criu/a.c:1): the cause\n") == "Error (criu/a.c:1): the cause"
    )


def test_noise_is_no_error() -> None:
    assert find_error(NOISE) is None


def test_without_an_error_the_end_is_told() -> None:
    assert find_reason("x" * 400 + "usage: criu") == "x" * 289 + "usage: criu"
    assert find_reason(" \n") == "criu said nothing"


def test_missing_log(tmp_path: Path) -> None:
    assert read_error(tmp_path / "dump.log") is None
