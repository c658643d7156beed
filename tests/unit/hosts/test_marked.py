"""Processes that are found by a variable in their environment."""

import os
import signal
import subprocess
import sys
import time

from llmux.hosts import marked
from llmux.hosts.marked import find_marked, kill_marked, mark_of

VARIABLE = "LLMUX_TEST_MARK"
ORPHANS = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"


def test_orphans_are_found_and_killed_and_nothing_else():
    value = str(os.getpid())
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{ORPHANS}; print(flush=True); import time; time.sleep(600)"],
        env={**os.environ, VARIABLE: value},
        stdout=subprocess.PIPE,
    )
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"],
        env={**os.environ, VARIABLE: f"{value}0"},
        stdout=subprocess.PIPE,
    )
    try:
        for one in (parent, other):
            assert one.stdout is not None
            one.stdout.readline()
        parent.kill()
        parent.wait()
        (orphan,) = find_marked(VARIABLE, value)
        assert kill_marked(VARIABLE, value) == [orphan]
        while find_marked(VARIABLE, value):
            pass
        assert other.poll() is None
    finally:
        for one in (parent, other):
            one.kill()
            one.wait()
            assert one.returncode == -signal.SIGKILL
            assert one.stdout is not None
            one.stdout.close()


def stat_of(pid: int, environment_end: int) -> str:
    """What ``/proc/PID/stat`` says of a process that has memory, with a name that is hard to parse."""
    fields = [str(pid), "(an (odd) name)", "S", *["1"] * 49]
    fields[51 - 1] = str(environment_end)
    return " ".join(fields)


def test_a_process_in_the_middle_of_exec_is_found_once_its_environment_is_there(tmp_path, monkeypatch):
    process = tmp_path / "42"
    process.mkdir()
    (process / "environ").write_bytes(b"")
    (process / "stat").write_text(stat_of(42, environment_end=0))

    def finish_exec(seconds: float) -> None:
        (process / "environ").write_bytes(f"A=1\0{VARIABLE}=token\0".encode())
        (process / "stat").write_text(stat_of(42, environment_end=4711))

    monkeypatch.setattr(marked, "PROC", tmp_path)
    monkeypatch.setattr(time, "sleep", finish_exec)
    assert find_marked(VARIABLE, "token") == [42]
    assert mark_of(42, VARIABLE) == "token"


def test_nothing_is_waited_for_where_a_process_has_no_variables_or_has_ended(monkeypatch):
    def never(seconds: float) -> None:
        raise AssertionError("waited")

    bare = subprocess.Popen(["/bin/sleep", "600"], env={})
    try:
        while marked._is_in_exec(bare.pid):
            pass
        with monkeypatch.context() as patched:
            patched.setattr(time, "sleep", never)
            assert mark_of(bare.pid, VARIABLE) is None
            bare.kill()
            os.waitid(os.P_PID, bare.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie until waited for
            assert mark_of(bare.pid, VARIABLE) is None
    finally:
        bare.kill()
        bare.wait()
