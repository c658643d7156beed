import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmux.checkpoints.processes import find_taken, inspect_tree, read_name
from tests.support.processes import wait_until, wait_until_dead

FAMILY = """
import os, signal, threading, time
data = bytearray(os.urandom(1 << 20)) * 32
if os.fork() == 0:
    signal.pause()
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def family() -> Iterator[int]:
    argv = (sys.executable, "-S", "-c", FAMILY)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        os.killpg(process.pid, signal.SIGKILL)


def test_a_tree_of_processes_and_threads(family: int) -> None:
    tree = inspect_tree(family)
    assert tree.pids[0] == family
    assert len(tree.pids) == 2
    assert set(tree.pids) < set(tree.tids)
    assert len(tree.tids) == 3
    assert tree.groups == (family,)
    assert 64 << 20 <= tree.memory_bytes < 256 << 20
    assert tree.undumpable == ()
    assert tree.gpu_processes == 0


def test_a_process_that_has_ended_has_no_threads_and_no_memory() -> None:
    with subprocess.Popen("true") as process:
        process.wait()
        tree = inspect_tree(process.pid)
    assert (tree.pids, tree.tids, tree.memory_bytes) == ((process.pid,), (), 0)


def test_ids_of_processes_and_threads_are_taken(family: int) -> None:
    tids = inspect_tree(family).tids
    assert set(find_taken((*tids, 4_194_305))) == set(tids)
    assert find_taken([family])[family] == read_name(family)


def test_a_zombie_takes_its_id() -> None:
    with subprocess.Popen("true") as process:
        wait_until(lambda: read_state(process.pid) == "Z", "the end")
        assert find_taken([process.pid]) == {process.pid: "true"}


def read_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_group_takes_its_id_without_its_leader() -> None:
    script = "import os, signal\npid = os.fork()\nif pid == 0: signal.pause()\nprint(pid, flush=True)"
    argv = (sys.executable, "-S", "-c", script)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        member = int(leader.stdout.readline())
        leader.wait()
        assert set(find_taken([leader.pid])) == {leader.pid}
        os.kill(member, signal.SIGKILL)
        wait_until_dead([member])


def test_descendants_belong_to_the_tree(family: int) -> None:
    tree = inspect_tree(os.getpid()).pids
    assert tree[0] == os.getpid()
    assert family in tree
