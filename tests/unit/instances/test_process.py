"""llmux's side of an engine's process, with real shims and real engines."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmux.errors import DumpFailed, ProcessStuck, SpawnFailed
from llmux.instances import process as process_module
from llmux.instances.process import EngineProcess, LaunchCommand, StayRefused, describe_exit
from llmux.instances.shim_connection import ShimConnection
from tests.support.processes import (
    DEADLINE_SECONDS,
    IGNORE_SIGTERM,
    PRINT_PID_AND_WAIT,
    STUBBORN_TREE,
    exists,
    is_living,
    until,
    wait_until,
    wait_until_dead,
)

NOTE_SIGTERM = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM", flush=True))
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


class Listener:
    """Records an engine's output and exits."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.exits: list[int] = []
        self.news = asyncio.Event()

    def on_line(self, stream: str, line: str) -> None:
        self.lines.append((stream, line))
        self.news.set()

    async def wait_lines(self, count: int) -> list[str]:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(self.lines) < count:
                self.news.clear()
                await self.news.wait()
        return [line for _, line in self.lines[:count]]


def command(script: str, *arguments: str, temporary_directory: Path | None = None) -> LaunchCommand:
    argv = (sys.executable, "-S", "-c", script, *arguments)
    return LaunchCommand(argv, dict(os.environ), temporary_directory=temporary_directory)


async def spawn(launch: LaunchCommand, listener: Listener) -> EngineProcess:
    return await EngineProcess.spawn(launch, on_line=listener.on_line, on_exit=listener.exits.append)


async def test_output_exit_and_end_are_reported(tmp_path: Path) -> None:
    listener = Listener()
    script = r"""
import os, sys
print("\x1b[1;32mok \x1b[0m", os.environ["TMPDIR"]); print()
sys.stdout.flush(); print("why it failed", file=sys.stderr); sys.exit(3)
"""
    directory = tmp_path / "engine"
    process = await spawn(command(script, temporary_directory=directory), listener)
    shim = process.shim_pid
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await process.wait_exited() == 3
        await process.wait_gone()
    assert sorted(listener.lines) == [("stderr", "why it failed"), ("stdout", ""), ("stdout", f"ok  {directory}")]
    assert sorted(process.tail) == [f"ok  {directory}", "why it failed"]
    assert listener.exits == [3]
    assert process.exit_status == 3
    assert not exists(process.pid)
    assert not directory.exists()
    assert shim is not None
    assert not exists(shim), "the shim has been reaped"
    await process.stop(0, 0)


async def test_spawn_failure_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    listener = Listener()
    directory = tmp_path / "engine"
    launch = LaunchCommand(("no-such-engine",), dict(os.environ), temporary_directory=directory)
    with pytest.raises(SpawnFailed, match="'no-such-engine' was not found on the PATH"):
        await spawn(launch, listener)
    assert not directory.exists()
    assert listener.exits == []


async def test_environment_may_contain_bytes_that_are_not_utf8() -> None:
    listener = Listener()
    environment = {"ODD": b"\xff".decode(errors="surrogateescape")}
    launch = LaunchCommand((sys.executable, "-S", "-c", "import os; print(os.environb[b'ODD'])"), environment)
    process = await spawn(launch, listener)
    assert await listener.wait_lines(1) == [r"b'\xff'"]
    await process.wait_gone()


async def test_stop_escalates_to_sigkill_and_returns_when_all_is_gone() -> None:
    listener = Listener()
    process = await spawn(command(STUBBORN_TREE), listener)
    pids = [int(line) for line in await listener.wait_lines(4)]
    await process.stop(0.2, DEADLINE_SECONDS)
    assert not any(map(is_living, pids))
    assert listener.exits == [-signal.SIGKILL]


async def test_the_shim_completes_a_cancelled_stop() -> None:
    listener = Listener()
    process = await spawn(command(IGNORE_SIGTERM), listener)
    await listener.wait_lines(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await process.stop(0.2, DEADLINE_SECONDS)
    assert is_living(process.pid)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await process.wait_gone()
    assert listener.exits == [-signal.SIGKILL]


async def test_cancelled_waiting_is_harmless() -> None:
    process = await spawn(command(PRINT_PID_AND_WAIT), Listener())
    for wait in (process.wait_exited, process.wait_gone):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await wait()
    assert process.exit_status is None
    process.kill()
    assert await process.wait_exited() == -signal.SIGKILL
    await process.wait_gone()


async def test_stuck_processes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where signals do not arrive: in a frozen cgroup, or in a driver call that does not end."""
    monkeypatch.setattr(process_module, "SHIM_ANSWER_SECONDS", 0.05)
    listener = Listener()
    process = await spawn(command(PRINT_PID_AND_WAIT), listener)
    await listener.wait_lines(1)
    assert process.shim_pid is not None
    os.kill(process.shim_pid, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(ShimConnection, "kill", lambda connection: None)
        with pytest.raises(ProcessStuck) as caught:
            await process.stop(0.05, 0.05)
        assert caught.value.pids == (process.pid,)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ProcessStuck) as caught:
            await process.stop(0.05, 0.05)
        assert process.shim_pid in caught.value.pids, "the shim has not reaped its child, so both are left"
    await process.stop(0.05, DEADLINE_SECONDS)
    assert not exists(process.shim_pid)


@pytest.mark.parametrize("engine_lives", [True, False])
async def test_a_shim_that_hangs_is_killed_with_its_whole_tree(
    engine_lives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "SHIM_ANSWER_SECONDS", 0.2)
    listener = Listener()
    directory = tmp_path / "engine"
    process = await spawn(command(STUBBORN_TREE, temporary_directory=directory), listener)
    pids = [int(line) for line in await listener.wait_lines(4)]
    shim = process.shim_pid
    assert shim is not None
    os.kill(shim, signal.SIGSTOP)
    if not engine_lives:
        os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await process.stop(600.0, DEADLINE_SECONDS)
    assert not any(map(is_living, pids))
    assert not exists(shim)
    assert not directory.exists()
    assert listener.exits == [-signal.SIGKILL]


async def test_a_shim_that_hangs_in_the_middle_of_a_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "SHIM_ANSWER_SECONDS", 0.2)
    listener = Listener()
    process = await spawn(command(NOTE_SIGTERM), listener)
    await listener.wait_lines(1)
    shim = process.shim_pid
    assert shim is not None
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(process.stop(0.5, 0.5))
        assert await listener.wait_lines(2) == [str(process.pid), "SIGTERM"]
        os.kill(shim, signal.SIGSTOP)
    assert not is_living(process.pid)
    assert not exists(shim)


async def test_a_dump_under_a_shim_that_hangs_fails_soon_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "SHIM_ANSWER_SECONDS", 0.2)
    process = await spawn(command(PRINT_PID_AND_WAIT), Listener())
    shim = process.shim_pid
    assert shim is not None
    os.kill(shim, signal.SIGSTOP)
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(DumpFailed, match="its shim was killed") as caught:
            await process.dump(("criu",), 600.0)
    assert not caught.value.engine_runs
    assert not is_living(process.pid)
    assert not exists(shim)


async def test_a_cancelled_spawn_under_a_shim_that_hangs_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "SHIM_END_SECONDS", 0.2)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(spawn(command(PRINT_PID_AND_WAIT), Listener()))
        await until(lambda: bool(find_children("shim")), "the shim's start")
        (shim,) = find_children("shim")
        os.kill(shim, signal.SIGSTOP)
        task.cancel()
    assert task.cancelled()
    await until(lambda: not exists(shim), "the shim's end")


async def test_killed_shim_does_not_orphan_the_engine(tmp_path: Path) -> None:
    listener = Listener()
    directory = tmp_path / "engine"
    process = await spawn(command(STUBBORN_TREE, temporary_directory=directory), listener)
    pids = [int(line) for line in await listener.wait_lines(4)]
    (directory / "file").touch()
    assert process.shim_pid is not None
    os.kill(process.shim_pid, signal.SIGKILL)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await process.wait_gone()
    assert not any(map(is_living, pids))
    assert listener.exits == [-signal.SIGKILL]
    assert not directory.exists()
    assert not exists(process.shim_pid)


async def test_cancelled_spawn_leaves_nothing(tmp_path: Path) -> None:
    listener = Listener()
    directory = tmp_path / "engine"
    spawned: list[EngineProcess] = []

    async def spawn_it() -> None:
        spawned.append(await spawn(command(PRINT_PID_AND_WAIT, temporary_directory=directory), listener))

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(spawn_it())
        await until(lambda: bool(find_children("shim")), "the shim's start")
        shims = find_children("shim")
        task.cancel()
    wait_until_dead(shims)
    await until(lambda: not find_children("shim"), "the shim's reaping")
    assert spawned == []
    assert listener.exits == []
    assert not directory.exists()


def find_children(word: str) -> list[int]:
    """Our children (zombies too) whose command line has the word, or is gone already."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    found = []
    for child in children:
        line = Path(f"/proc/{child}/cmdline").read_bytes()
        if not line or word.encode() in line:
            found.append(int(child))
    return found


async def test_a_callback_that_raises_is_reported_and_does_not_end_the_engine() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    fault = ValueError("a log that cannot be written")

    def fail(*arguments: object) -> None:
        raise fault

    process = await EngineProcess.spawn(command("print(1); print(2)"), on_line=fail, on_exit=fail)
    await process.wait_gone()
    assert reported == [fault, fault, fault]
    assert process.tail == ("1", "2")
    assert process.exit_status == 0


async def test_endless_printer_does_not_starve_the_loop() -> None:
    listener = Listener()
    loop = asyncio.get_running_loop()
    process = await spawn(command("while True: print('x' * 80)"), listener)
    await listener.wait_lines(1)
    began = loop.time()
    await listener.wait_lines(3_000)
    assert loop.time() - began < DEADLINE_SECONDS
    longest = 0.0
    for _ in range(100):
        before = loop.time()
        await asyncio.sleep(0)
        longest = max(longest, loop.time() - before)
    assert longest < 0.5
    await process.stop(0.1, DEADLINE_SECONDS)
    assert listener.exits
    assert len(process.tail) == 50


PARENT = """
import asyncio, sys
from pathlib import Path
from llmux.instances.process import EngineProcess, LaunchCommand

async def main():
    argv = (sys.executable, "-S", "-c", sys.argv[1])
    launch = LaunchCommand(argv, {}, temporary_directory=Path(sys.argv[2]))
    process = await EngineProcess.spawn(launch, on_line=lambda stream, line: print(line, flush=True), on_exit=print)
    await process.wait_gone()

asyncio.run(main())
"""


def test_sigkill_of_llmux_leaves_no_process_and_no_directory(tmp_path: Path) -> None:
    directory = tmp_path / "engine"
    argv = (sys.executable, "-c", PARENT, STUBBORN_TREE, str(directory))
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(4)]
        assert directory.exists()
        parent.kill()
        wait_until_dead(pids, 2.0)
        wait_until(lambda: not directory.exists(), "the directory's removal", 2.0)


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exit code 0"), (1, "exit code 1"), (-9, "killed by SIGKILL"), (-40, "killed by signal 40")],
)
def test_describe_exit(status: int, words: str) -> None:
    assert describe_exit(status) == words


async def test_an_engine_that_stays_reports_nothing_any_more(tmp_path: Path) -> None:
    listener = Listener()
    directory = tmp_path / "engine"
    process = await spawn(command(PRINT_PID_AND_WAIT, temporary_directory=directory), listener)
    (root,) = await listener.wait_lines(1)
    shim = process.shim_pid
    assert shim is not None
    await process.stay()
    os.kill(shim, signal.SIGTERM)
    await until(lambda: not is_living(int(root)) and not is_living(shim), "the end of what stayed")
    assert os.waitpid(shim, os.WNOHANG) == (shim, 0)  # noqa: ASYNC222 - it has ended
    assert not directory.exists()
    assert listener.exits == []


async def test_an_engine_that_has_ended_cannot_stay() -> None:
    listener = Listener()
    process = await spawn(command("pass"), listener)
    await process.wait_exited()
    with pytest.raises(StayRefused, match="it has ended"):
        await process.stay()
    await process.wait_gone()
