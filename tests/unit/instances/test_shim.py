"""The shim as a program: real processes, and its protocol over a real socket."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmux.instances.shim_connection import SHIM
from tests.support.processes import (
    DEADLINE_SECONDS,
    IGNORE_SIGTERM,
    PRINT_PID_AND_WAIT,
    ROOT_DIES_CHILD_LIVES,
    STUBBORN_TREE,
    is_living,
    wait_until,
    wait_until_dead,
)

CHATTER = """
import os, signal, sys
open(sys.argv[1]).read()
for _ in range(200): os.write(1, b"x" * 10_000 + b"\\n")
open(sys.argv[2], "w").close()
while True: signal.pause()
"""
"""Prints more than a pipe holds once its FIFO has been opened and closed, then makes a file."""

TREE_ENDING_WITH_SIGTERM = """
import os, signal
if os.fork() == 0:
    os.setsid()
    os.write(1, b"%d\\n" % os.getpid())
while True: signal.pause()
"""


class Shim:
    """A shim and its socket."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE_SECONDS)
        with theirs:
            self.process = subprocess.Popen(
                (sys.executable, "-I", "-S", str(SHIM), str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.incoming = self.socket.makefile("rb")

    def send(self, command: str, **facts: Any) -> None:
        self.socket.sendall(json.dumps({"command": command, **facts}).encode() + b"\n")

    def start(self, script: str, *arguments: str, **facts: Any) -> int:
        self.send("start", argv=[sys.executable, "-S", "-c", script, *arguments], env=dict(os.environ), **facts)
        event = self.next_event()
        assert event["event"] == "started", event
        return int(event["pid"])

    def stop(self, terminate_seconds: float, leftover_seconds: float = 60.0) -> None:
        self.send("stop", terminate_seconds=terminate_seconds, leftover_seconds=leftover_seconds)

    def next_event(self) -> dict[str, Any]:
        line = self.incoming.readline()
        assert line, "the shim has closed its socket"
        return dict(json.loads(line))

    def events_until(self, last: str) -> list[dict[str, Any]]:
        events = [self.next_event()]
        while events[-1]["event"] != last:
            events.append(self.next_event())
        return events

    def next_lines(self, count: int) -> list[str]:
        lines: list[str] = []
        while len(lines) < count:
            event = self.next_event()
            assert event["event"] == "output", event
            lines += event["lines"]
        return lines

    def hang_up(self) -> None:
        self.incoming.close()
        self.socket.close()


@pytest.fixture
def shim() -> Iterator[Shim]:
    shim = Shim()
    yield shim
    shim.hang_up()
    assert shim.process.wait(DEADLINE_SECONDS) == 0


def output_of(events: list[dict[str, Any]], stream: str) -> list[str]:
    return [line for event in events if event.get("stream") == stream for line in event["lines"]]


def test_engine_has_session_of_its_own_and_ordinary_signals(shim: Shim, tmp_path: Path) -> None:
    script = """
import os
status = open("/proc/self/status").read().split()
print(os.getsid(0), os.getpgid(0), os.getcwd(), os.readlink("/proc/self/fd/0"), os.environ["GREETING"])
print(status[status.index("SigIgn:") + 1], status[status.index("SigBlk:") + 1])
print(sorted(os.listdir("/proc/self/fd"))[:-1])
"""
    environment = {"GREETING": "hello"}
    shim.send("start", argv=[sys.executable, "-I", "-S", "-c", script], env=environment, cwd=str(tmp_path))
    pid = shim.next_event()["pid"]
    first, second, third = output_of(shim.events_until("gone"), "stdout")
    assert first == f"{pid} {pid} {tmp_path} /dev/null hello"
    ignored, blocked = (int(mask, 16) for mask in second.split())
    python_ignores = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    # glibc's own two, which nobody else can set: its posix_spawn, which make uses, leaves them ignored.
    libc_ignores = 0b11 << (32 - 1)
    assert (ignored & ~python_ignores & ~libc_ignores, blocked) == (0, 0)
    assert third == "['0', '1', '2']"


def test_output_arrives_line_by_line_before_the_exit(shim: Shim) -> None:
    script = r"""
import os
os.write(1, b"one\ntw"); os.write(2, b"error\n"); os.write(1, b"o\n\nb\xffd\nlast words"); os._exit(4)
"""
    shim.start(script)
    events = shim.events_until("gone")
    assert output_of(events, "stdout") == ["one", "two", "", "b\ufffdd", "last words"]
    assert output_of(events, "stderr") == ["error"]
    assert events[-2:] == [{"event": "exited", "status": 4}, {"event": "gone"}]


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        ("'a' * 50_000 + chr(10)", "a" * 16_384),
        ("('x' * 200 + chr(13)) * 200 + 'done' + chr(10)", "done"),
    ],
)
def test_overlong_line_is_cut(shim: Shim, printed: str, line: str) -> None:
    shim.start(f"import os; os.write(1, ({printed} + 'next').encode())")
    assert output_of(shim.events_until("exited"), "stdout") == [line, "next"]


def test_gone_only_when_the_last_descendant_is(shim: Shim, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    shim.start(ROOT_DIES_CHILD_LIVES, str(fifo))
    events = shim.events_until("exited")
    assert events[-1]["status"] == 3
    (child,) = output_of(events, "stdout") or shim.next_lines(1)
    assert is_living(int(child))
    fifo.write_text("")
    assert shim.next_event() == {"event": "gone"}
    assert not is_living(int(child))


def test_stop_lets_the_engine_exit_by_itself(shim: Shim) -> None:
    script = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print(1, flush=True)"
    shim.start(f"{script}; signal.pause()")
    shim.next_lines(1)
    shim.stop(60)
    assert shim.events_until("gone")[0] == {"event": "exited", "status": 7}


def test_stop_kills_at_the_deadline_what_ignores_sigterm(shim: Shim) -> None:
    shim.start(STUBBORN_TREE)
    pids = [int(line) for line in shim.next_lines(4)]
    shim.stop(0.2)
    events = shim.events_until("gone")
    assert events[0] == {"event": "exited", "status": -signal.SIGKILL}
    assert not any(map(is_living, pids))


def test_stop_terminates_the_rest_of_the_tree_once_the_root_is_gone(shim: Shim, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    shim.start(ROOT_DIES_CHILD_LIVES, str(fifo))
    shim.events_until("exited")
    shim.stop(60)
    assert shim.events_until("gone")


@pytest.mark.parametrize("stop_before_exit", [True, False])
def test_descendants_of_an_ended_root_get_less_time(shim: Shim, stop_before_exit: bool) -> None:
    script = """
import os, signal
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("child", flush=True)
    while True: signal.pause()
print("root", flush=True)
signal.pause()
"""
    root = shim.start(script)
    shim.next_lines(2)
    if not stop_before_exit:
        os.kill(root, signal.SIGKILL)
        shim.events_until("exited")
    shim.stop(terminate_seconds=60, leftover_seconds=0.1)
    assert shim.events_until("gone")


def test_stop_sends_sigterm_to_what_the_root_leaves(shim: Shim) -> None:
    script = """
import os, signal
os.fork()
print("ready", flush=True)
signal.pause()
"""
    shim.start(script)
    shim.next_lines(2)
    shim.stop(terminate_seconds=60, leftover_seconds=60)
    assert shim.events_until("gone")[0] == {"event": "exited", "status": -signal.SIGTERM}


def test_stop_then_kill_does_not_wait(shim: Shim) -> None:
    shim.start(IGNORE_SIGTERM)
    shim.next_lines(1)
    shim.stop(60)
    shim.send("kill")
    assert shim.events_until("gone")[0] == {"event": "exited", "status": -signal.SIGKILL}


def test_suspended_engine_is_killed(shim: Shim) -> None:
    pid = shim.start(PRINT_PID_AND_WAIT)
    shim.next_lines(1)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: b") T" in Path(f"/proc/{pid}/stat").read_bytes(), "the engine's stop")
    shim.stop(0.1)
    assert shim.events_until("gone")


def test_the_end_of_the_socket_kills_the_tree_and_nothing_else(shim: Shim, tmp_path: Path) -> None:
    directory = tmp_path / "engine"
    stranger = subprocess.Popen((sys.executable, "-S", "-c", "input()"), stdin=subprocess.PIPE)
    shim.start(STUBBORN_TREE, temporary_directory=str(directory))
    pids = [int(line) for line in shim.next_lines(4)]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (directory / "deep").mkdir()
    (directory / "deep" / "file").touch()
    (directory / "link").symlink_to(outside)
    shim.hang_up()
    assert shim.process.wait(DEADLINE_SECONDS) == 0
    assert not any(map(is_living, pids))
    assert not directory.exists()
    assert (outside / "kept").exists()
    assert stranger.poll() is None
    stranger.communicate(b"\n")


def test_temporary_directory_is_private_and_removed_before_gone(shim: Shim, tmp_path: Path) -> None:
    directory = tmp_path / "engine"
    shim.start(PRINT_PID_AND_WAIT, temporary_directory=str(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    shim.send("kill")
    shim.events_until("gone")
    assert not directory.exists()


def test_signals_of_the_terminal_are_ignored(shim: Shim) -> None:
    shim.send("nothing")
    assert shim.next_event()["event"] == "refused"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        shim.process.send_signal(number)
    pid = shim.start(PRINT_PID_AND_WAIT)
    assert shim.next_lines(1) == [str(pid)]


def spawn_failure(shim: Shim, program: str, directory: str | None = None) -> str:
    shim.send("start", argv=[program], env={"PATH": os.environ["PATH"]}, cwd=directory)
    event = shim.next_event()
    assert event["event"] == "spawn_failed", event
    return str(event["reason"])


def test_each_spawn_failure_has_its_own_reason(shim: Shim, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    assert "check its permissions" in spawn_failure(shim, str(script))
    script.chmod(0o755)
    assert "interpreter" in spawn_failure(shim, str(script))
    assert "'no-such-engine' was not found on the PATH" in spawn_failure(shim, "no-such-engine")
    assert spawn_failure(shim, "/no/such/engine") == "the command /no/such/engine does not exist"
    assert spawn_failure(shim, "true", "/no/such") == "the working directory /no/such does not exist"
    shim.start("pass")


def test_engine_can_be_started_again_but_not_twice(shim: Shim) -> None:
    shim.start(PRINT_PID_AND_WAIT)
    shim.next_lines(1)
    shim.send("start", argv=["true"], env={})
    assert shim.next_event()["event"] == "refused"
    shim.send("kill")
    shim.events_until("gone")
    shim.start("print('again')")
    assert output_of(shim.events_until("gone"), "stdout") == ["again"]


def test_engine_never_waits_for_a_reader_and_the_newest_lines_stay(shim: Shim, tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    count = 50_000
    shim.start(
        "import sys, pathlib\n"
        f"for n in range({count}): sys.stdout.write('%08d %s\\n' % (n, 'x' * 91))\n"
        "sys.stdout.flush(); pathlib.Path(sys.argv[1]).touch()",
        str(finished),
    )
    wait_until(finished.exists, "the engine's end though nobody reads")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{shim.process.pid}/status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 40_000, "KiB"
    events = shim.events_until("gone")
    lines = output_of(events, "stdout")
    dropped = sum(event["lines"] for event in events if event["event"] == "dropped")
    assert dropped > 0
    assert dropped + len(lines) == count
    numbers = [int(line[:8]) for line in lines]
    assert numbers == sorted(numbers)
    assert numbers[-4000:] == list(range(count - 4000, count))


def test_endless_printer_is_batched_and_killed(shim: Shim) -> None:
    shim.start("import sys\nwhile True: print('x' * 99)")
    batches = [shim.next_event() for _ in range(20)]
    assert max(len(batch.get("lines", ())) if batch["event"] == "output" else 0 for batch in batches) > 100
    shim.send("kill")
    assert {"event": "exited", "status": -signal.SIGKILL} in shim.events_until("gone")


def test_a_malformed_command_ends_the_tree(shim: Shim) -> None:
    pid = shim.start(PRINT_PID_AND_WAIT)
    shim.next_lines(1)
    shim.socket.sendall(b"no json\n")
    assert "JSONDecodeError" in shim.next_event()["reason"]
    assert shim.incoming.readline() == b""
    wait_until_dead([pid])


def test_engine_without_io_uring(shim: Shim) -> None:
    script = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(425, 4, ctypes.create_string_buffer(120)), ctypes.get_errno())
lines = open("/proc/self/status").read().splitlines()
print([line.split()[1] for line in lines if line.startswith(("NoNewPrivs", "Seccomp:"))])
"""
    shim.start(script, block_io_uring=True)
    assert output_of(shim.events_until("gone"), "stdout") == ["-1 38", "['1', '2']"]


def criu(script: str, *arguments: str) -> list[str]:
    """A criu that does what the script says."""
    return [sys.executable, "-S", "-c", script, *arguments]


def test_dumped_engine_has_not_exited_and_its_directory_stays(shim: Shim, tmp_path: Path) -> None:
    directory = tmp_path / "engine"
    pid = shim.start(STUBBORN_TREE, temporary_directory=str(directory))
    pids = [int(line) for line in shim.next_lines(4)]
    script = "import os, signal, sys; [os.kill(int(pid), signal.SIGKILL) for pid in sys.argv[1:]]"
    shim.send("dump", argv=criu(script, *map(str, pids)), timeout_seconds=60)
    assert shim.next_event() == {"event": "dumped"}
    assert not any(map(is_living, pids))
    assert pid in pids
    assert directory.exists()
    shim.hang_up()
    assert shim.process.wait(DEADLINE_SECONDS) == 0
    assert not directory.exists()


def test_failed_dump_leaves_everything_as_it_was(shim: Shim) -> None:
    shim.start(PRINT_PID_AND_WAIT)
    shim.next_lines(1)
    shim.send("dump", argv=criu("raise SystemExit(3)"), timeout_seconds=60)
    assert shim.next_event() == {"event": "dump_failed", "status": 3, "reason": ""}
    shim.send("dump", argv=["/no/such/criu"], timeout_seconds=60)
    assert "criu could not be started" in shim.next_event()["reason"]
    shim.stop(60)
    assert shim.events_until("gone")[0] == {"event": "exited", "status": -signal.SIGTERM}


def test_criu_is_killed_with_its_children_at_its_deadline(shim: Shim, tmp_path: Path) -> None:
    shim.start(PRINT_PID_AND_WAIT)
    (root,) = shim.next_lines(1)
    children = tmp_path / "children"
    script = "import os, signal, sys; pid = os.fork(); pid and open(sys.argv[1], 'w').write(str(pid)); signal.pause()"
    shim.send("dump", argv=criu(script, str(children)), timeout_seconds=0.5)
    event = shim.next_event()
    assert (event["status"], event["reason"]) == (-signal.SIGKILL, "it did not end within 0.5 s")
    wait_until_dead([int(children.read_text())])
    assert is_living(int(root))


def test_engine_that_ends_during_a_dump_that_fails(shim: Shim) -> None:
    root = shim.start(PRINT_PID_AND_WAIT)
    shim.next_lines(1)
    script = (
        "import os, sys; os.kill(int(sys.argv[1]), 9); open(f'/proc/{sys.argv[1]}/stat').close(); raise SystemExit(1)"
    )
    shim.send("dump", argv=criu(script, str(root)), timeout_seconds=60)
    events = shim.events_until("gone")
    assert {"event": "exited", "status": -signal.SIGKILL} in events
    assert {"event": "dump_failed", "status": 1, "reason": ""} in events


def test_nothing_to_dump(shim: Shim) -> None:
    shim.send("dump", argv=criu("pass"), timeout_seconds=60)
    assert "does not run" in shim.next_event()["reason"]


def test_failed_restore_leaves_no_process_and_no_directory(shim: Shim, tmp_path: Path) -> None:
    directory = tmp_path / "engine"
    directory.mkdir()
    made = tmp_path / "made"
    script = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(sys.argv[1], "w").write(str(os.getpid()))
    os.rename(sys.argv[1], sys.argv[1] + ".complete")
    while True: signal.pause()
while not os.path.exists(sys.argv[1] + ".complete"): pass
open(sys.argv[1], "w").write(" ".join(sys.argv[2:]))
os._exit(5)
"""
    facts = {"pid": 4_194_304, "pipes": [17, 18], "temporary_directory": str(directory)}
    shim.send("restore", argv=criu(script, str(made)), timeout_seconds=60, **facts)
    assert shim.next_event() == {"event": "restore_failed", "status": 5, "reason": ""}
    assert not is_living(int(Path(f"{made}.complete").read_text()))
    assert not directory.exists()
    first, out, second, err = made.read_text().split()
    assert (first, second) == ("--inherit-fd", "--inherit-fd")
    assert out.startswith("fd[") and out.endswith("]:pipe:[17]")
    assert err.startswith("fd[") and err.endswith("]:pipe:[18]")


def test_restored_engine_is_like_a_started_one(shim: Shim) -> None:
    """This fake criu ends before its child, which so becomes the shim's, as with ``--restore-sibling``."""
    script = """
import os, signal, sys
number = int(sys.argv[2].split("[")[1].split("]")[0])
reader, writer = os.pipe()
if os.fork() == 0:
    os.read(reader, 1)
    os.write(number, b"restored\\n")
    signal.pause()
os.write(writer, b"x")
"""
    shim.send("restore", argv=criu(script), timeout_seconds=60, pid=4_194_304, pipes=[17, 18])
    events = [shim.next_event(), shim.next_event()]
    started = next(event for event in events if event["event"] == "started")
    assert started["pid"] == 4_194_304
    assert len(set(started["pipes"])) == 2
    assert output_of(events, "stdout") == ["restored"]
    shim.send("kill")
    assert shim.events_until("gone")


def test_restore_is_for_a_fresh_shim(shim: Shim) -> None:
    shim.start(PRINT_PID_AND_WAIT)
    shim.next_lines(1)
    shim.send("restore", argv=criu("pass"), timeout_seconds=60, pid=1, pipes=[1, 2])
    assert shim.next_event()["reason"] == "this shim has an engine already"


def test_socket_end_kills_criu(shim: Shim, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    root = shim.start(PRINT_PID_AND_WAIT)
    shim.next_lines(1)
    script = "import os, signal, sys; open(sys.argv[1], 'w').write(str(os.getpid()) + '.'); signal.pause()"
    shim.send("dump", argv=criu(script, str(file)), timeout_seconds=60)
    wait_until(lambda: file.exists() and file.read_text().endswith("."), "criu's start")
    shim.hang_up()
    assert shim.process.wait(DEADLINE_SECONDS) == 0
    assert not is_living(root)
    assert not is_living(int(file.read_text()[:-1]))


def test_a_staying_engine_outlives_the_socket_and_is_stopped_by_a_signal_to_the_shim(
    shim: Shim, tmp_path: Path
) -> None:
    directory = tmp_path / "engine"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    root = shim.start(CHATTER, str(gate), str(directory / "chattered"), temporary_directory=str(directory))
    shim.send("stay")
    assert "stays" in [event["event"] for event in shim.events_until("stays")]
    shim.hang_up()
    gate.write_text("")
    shown = directory / "chattered"
    wait_until(shown.exists, "an engine that can print although nobody reads it")
    assert is_living(root) and shim.process.poll() is None
    shim.process.send_signal(signal.SIGTERM)
    assert shim.process.wait(DEADLINE_SECONDS) == 0
    assert not is_living(root)
    assert not directory.exists()


def test_the_tree_of_a_staying_engine_ends_with_its_root(shim: Shim) -> None:
    root = shim.start(TREE_ENDING_WITH_SIGTERM)
    (child,) = shim.next_lines(1)
    shim.send("stay")
    shim.events_until("stays")
    shim.hang_up()
    os.kill(root, signal.SIGTERM)
    assert shim.process.wait(DEADLINE_SECONDS) == 0
    assert not is_living(root) and not is_living(int(child))


def test_only_a_running_engine_can_stay(shim: Shim) -> None:
    shim.send("stay")
    assert shim.next_event()["event"] == "refused"


STOP_COMMAND = """
import os, sys, time
with open(sys.argv[1], "a") as record:
    record.write("stop\\n")
print("stopping", os.environ["GREETING"], flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


def with_stop_command(record: Path, seconds: float = 0.0, status: int = 0, limit: float = 60.0) -> dict[str, Any]:
    words = (str(record), str(seconds), str(status))
    return {"stop_argv": [sys.executable, "-S", "-c", STOP_COMMAND, *words], "stop_seconds": limit}


def start_with_stop_command(shim: Shim, script: str, facts: dict[str, Any]) -> None:
    environment = {**os.environ, "GREETING": "hello"}
    shim.send("start", argv=[sys.executable, "-S", "-c", script], env=environment, **facts)
    assert shim.next_event()["event"] == "started"


def test_the_stop_command_runs_before_the_sigterm_and_once(shim: Shim, tmp_path: Path) -> None:
    start_with_stop_command(shim, PRINT_PID_AND_WAIT, with_stop_command(tmp_path / "record", status=3))
    shim.next_lines(1)
    shim.stop(60.0)
    events = [event for event in shim.events_until("gone") if event["event"] != "output"]
    assert [event["event"] for event in events] == ["stop_command_ended", "exited", "gone"]
    assert (events[0]["status"], events[0]["lines"]) == (3, ["stopping hello"])
    assert events[1]["status"] == -signal.SIGTERM
    assert (tmp_path / "record").read_text() == "stop\n"


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_stop_command_runs_when_the_tree_has_ended_otherwise(shim: Shim, tmp_path: Path, is_killed: bool) -> None:
    script = PRINT_PID_AND_WAIT if is_killed else "print(1)"
    start_with_stop_command(shim, script, with_stop_command(tmp_path / "record"))
    if is_killed:
        shim.next_lines(1)
        shim.send("kill")
        shim.stop(0.0)
    events = [event["event"] for event in shim.events_until("gone") if event["event"] != "output"]
    assert events == ["exited", "stop_command_ended", "gone"]


def test_a_stop_command_that_hangs_is_killed_and_one_that_cannot_be_started_is_reported(tmp_path: Path) -> None:
    for facts, reason in (
        (with_stop_command(tmp_path / "record", seconds=60.0, limit=0.2), "it did not end within 0.2 s"),
        ({"stop_argv": ["/no/such/program"], "stop_seconds": 1.0}, "does not exist"),
    ):
        shim = Shim()
        start_with_stop_command(shim, PRINT_PID_AND_WAIT, facts)
        shim.next_lines(1)
        shim.stop(60.0)
        (ended,) = (event for event in shim.events_until("gone") if event["event"] == "stop_command_ended")
        assert reason in ended["reason"]
        shim.hang_up()
        assert shim.process.wait(DEADLINE_SECONDS) == 0


def test_the_kill_of_a_tree_spares_the_stop_command_that_runs(shim: Shim, tmp_path: Path) -> None:
    start_with_stop_command(shim, PRINT_PID_AND_WAIT, with_stop_command(tmp_path / "record", seconds=0.3))
    shim.next_lines(1)
    shim.stop(60.0)
    wait_until(lambda: (tmp_path / "record").exists(), "the stop command")
    shim.send("kill")
    events = {event["event"]: event for event in shim.events_until("gone")}
    assert events["exited"]["status"] == -signal.SIGKILL
    assert events["stop_command_ended"]["status"] == 0


@pytest.mark.parametrize("is_running", [False, True])
def test_a_shim_without_llmux_runs_the_stop_command_to_its_end(tmp_path: Path, is_running: bool) -> None:
    shim, record = Shim(), tmp_path / "record"
    start_with_stop_command(shim, PRINT_PID_AND_WAIT, with_stop_command(record, seconds=0.2))
    shim.next_lines(1)
    if is_running:
        shim.stop(60.0)
        wait_until(record.exists, "the stop command")
    shim.hang_up()
    assert shim.process.wait(DEADLINE_SECONDS) == 0
    # Killed with the tree while it ran, it is run anew: only one that has ended is known to have done its work.
    assert record.read_text() == ("stop\nstop\n" if is_running else "stop\n")
