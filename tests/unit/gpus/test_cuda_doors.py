"""The two doors to the driver: its helper process and its program, with a stand-in for the driver behind them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from llmux.gpus.cuda import CudaAction, CudaCallFailed, CudaCheckpoints, CudaState, CudaUnusable
from llmux.gpus.cuda_choice import ChosenCuda
from llmux.gpus.cuda_driver import CudaDriver
from llmux.gpus.cuda_program import CudaProgram
from llmux.simulation.ledger import Ledger
from tests.support import fake_cuda
from tests.support.fake_cuda import FakeCuda
from tests.support.processes import until

DOORS = ("driver", "program")


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    ledger = Ledger(tmp_path / "gpu.json").create(1000)
    driver = FakeCuda(tmp_path / "cuda.json").create(ledger.path)
    monkeypatch.setenv(fake_cuda.VARIABLE, str(driver.path))
    for name, value in fake_cuda.install_binding(tmp_path).items():
        monkeypatch.setenv(name, value)
    return driver


@pytest.fixture
def user(cuda: FakeCuda) -> Iterator[int]:
    """A process that holds GPU memory."""
    process = subprocess.Popen((sys.executable, "-S", "-c", "import signal; signal.pause()"))
    Ledger(cuda.path.with_name("gpu.json")).allocate(process.pid, 300, "m")
    yield process.pid
    process.kill()
    process.wait()


@asynccontextmanager
async def door(which: str, directory: Path) -> AsyncIterator[CudaCheckpoints]:
    driver = CudaDriver(margin_seconds=0.2)
    program = CudaProgram(fake_cuda.install_program(directory), margin_seconds=0.2)
    try:
        yield driver if which == "driver" else program
    finally:
        await driver.close()


@pytest.mark.parametrize("which", DOORS)
async def test_a_process_is_suspended_and_resumed(which: str, cuda: FakeCuda, user: int, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gpu.json")
    async with door(which, tmp_path) as driver:
        assert await driver.state(user) is CudaState.RUNNING
        for action, state, held_mib in (
            (CudaAction.LOCK, CudaState.LOCKED, 300),
            (CudaAction.CHECKPOINT, CudaState.CHECKPOINTED, 0),
            (CudaAction.RESTORE, CudaState.LOCKED, 300),
            (CudaAction.UNLOCK, CudaState.RUNNING, 300),
        ):
            await driver.act(action, user, 10.0)
            assert await driver.state(user) is state
            assert ledger.snapshot().used_mib == held_mib
        assert await driver.state(os.getpid()) is None, "it does not use CUDA"
    assert cuda.violations == []


@pytest.mark.parametrize("which", DOORS)
async def test_a_refusal_is_settled(which: str, cuda: FakeCuda, user: int, tmp_path: Path) -> None:
    async with door(which, tmp_path) as driver:
        with pytest.raises(CudaCallFailed, match="(?i)illegal.state") as caught:
            await driver.act(CudaAction.RESTORE, user, 10.0)
        assert caught.value.is_settled
        assert await driver.state(user) is CudaState.RUNNING


@pytest.mark.parametrize("action", [CudaAction.LOCK, CudaAction.CHECKPOINT])
@pytest.mark.parametrize("which", DOORS)
@pytest.mark.parametrize("how", ["hang", "die"])
async def test_an_action_that_never_ends_or_dies_half_way_is_not_settled(
    which: str, how: str, action: CudaAction, cuda: FakeCuda, user: int, tmp_path: Path
) -> None:
    async with door(which, tmp_path) as driver:
        if action is CudaAction.CHECKPOINT:
            await driver.act(CudaAction.LOCK, user, 10.0)
        cuda.break_action(str(action), how, 1)
        with pytest.raises(CudaCallFailed) as caught:
            await driver.act(action, user, 0.5)
        assert not caught.value.is_settled
        # The next call gets a helper that works.
        assert await driver.state(user) is not None


async def test_calls_for_other_processes_outlive_one_that_hangs(cuda: FakeCuda, user: int, tmp_path: Path) -> None:
    async with door("driver", tmp_path) as driver:
        await driver.state(user)
        cuda.break_action("lock", "hang", 1)
        hanging = asyncio.gather(driver.act(CudaAction.LOCK, user, 1.0), return_exceptions=True)
        assert await driver.state(user) is CudaState.RUNNING
        (failure,) = await hanging
        assert isinstance(failure, CudaCallFailed)


async def test_the_helper_is_started_again_after_its_death(cuda: FakeCuda, user: int, tmp_path: Path) -> None:
    async with door("driver", tmp_path) as driver:
        assert await driver.state(user) is CudaState.RUNNING
        (helper,) = _helpers()
        helper.kill()
        await until(lambda: not _helpers(), "its end")
        assert await driver.state(user) is CudaState.RUNNING
    assert _helpers() == []


@pytest.mark.parametrize("hangs_in", ["init", "state"])
async def test_a_helper_ends_with_its_input(hangs_in: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    if hangs_in == "init":
        monkeypatch.setenv("FAKE_CUDA_INIT", "hang")
    cuda.break_action("state", "hang")
    process = subprocess.Popen(
        (sys.executable, "-P", "-m", "llmux.gpus.driver_helper"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdin is not None
        process.stdin.write(b'{"id": 1, "do": "state", "pid": 1}\n')
        process.stdin.flush()
        if hangs_in == "state":
            assert b"ready" in await asyncio.to_thread(process.stdout.readline)
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.parametrize("said", ["print('hello')", "print('[1]')", "print('{}')", "pass", "print('x' * 200000)"])
async def test_a_helper_that_says_something_else_is_refused(said: str) -> None:
    driver = CudaDriver((sys.executable, "-S", "-c", said))
    with pytest.raises(CudaUnusable):
        await driver.check()
    await driver.close()


async def test_garbage_after_the_greeting_ends_the_helper(tmp_path: Path) -> None:
    code = "print('{\"ready\": \"1\"}', flush=True); input(); print('?', flush=True); import signal; signal.pause()"
    driver = CudaDriver((sys.executable, "-S", "-c", code))
    with pytest.raises(CudaCallFailed) as caught:
        await driver.act(CudaAction.LOCK, 1, 20.0)
    assert not caught.value.is_settled
    await driver.close()


async def test_a_helper_that_never_greets_is_given_up() -> None:
    driver = CudaDriver((sys.executable, "-S", "-c", "import signal; signal.pause()"), start_seconds=0.5)
    with pytest.raises(CudaUnusable, match=r"did not answer within 0\.5 s"):
        await driver.check()


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [("FAKE_CUDA_INIT", "100", "NO_DEVICE"), ("FAKE_CUDA_VERSION", "12040", "CUDA 12.4: install driver 570")],
)
async def test_a_driver_that_cannot_do_it_says_why(
    variable: str, value: str, reason: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(CudaUnusable, match=reason):
        await CudaDriver().check()


async def test_the_program_takes_the_place_of_a_binding_that_is_missing(
    cuda: FakeCuda, user: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH")
    chosen = ChosenCuda(CudaDriver(), CudaProgram(fake_cuda.install_program(tmp_path)))
    await chosen.check()
    assert await chosen.state(user) is CudaState.RUNNING
    await chosen.close()


async def test_where_neither_works_both_reasons_and_the_remedy_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    chosen = ChosenCuda(CudaDriver(), CudaProgram("no-such-program"))
    with pytest.raises(CudaUnusable) as caught:
        await chosen.check()
    for part in ("cuda-bindings is not installed", "'no-such-program' was not found", "pip install"):
        assert part in str(caught.value)


def _helpers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [
        one for one in children if one.status() != psutil.STATUS_ZOMBIE and "driver_helper" in " ".join(one.cmdline())
    ]


async def test_the_program_is_run_through_sudo_where_llmux_is_not_root(
    cuda: FakeCuda, user: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tmp_path / "words"
    (tmp_path / "sudo").write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >> "{words}"\nshift\nexec "$@"\n')
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    async with door("program", tmp_path) as driver:
        await driver.act(CudaAction.LOCK, user, 1.0)
        assert await driver.state(user) is CudaState.LOCKED
    assert words.read_text().split() == ["-n", "-n"], "it never asks for a password"
