"""The program of a GPU lease: it comes when memory is free, and its end is waited for."""

import asyncio
import os
import subprocess
import sys

from llmux.core.eviction import STOP
from llmux.core.states import Cold
from llmux.gpus.memory import GpuHeadroom, GpuMemory, GpuProcess, StartNeed
from llmux.instances import leased_program
from llmux.instances.leased_program import LEASE_VARIABLE, LeasedProgram


class Gpu:
    """A GPU of 1,000 MiB."""

    used_mib = 0

    def read_memory(self) -> tuple[GpuMemory, ...]:
        return (GpuMemory("0", 1000, self.used_mib),)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        return (GpuProcess(7, "game", self.used_mib),)


def program(gpu: Gpu | None = None, **more: float) -> LeasedProgram:
    headroom = GpuHeadroom("train", gpu, StartNeed(mib=800), wait_seconds=0.0)
    return LeasedProgram(headroom, **{"stop_timeout_seconds": 600.0, **more})


async def test_memory_that_is_not_free_in_time_is_an_error_that_names_who_has_it() -> None:
    gpu = Gpu()
    one = program(gpu)
    assert (await one.wake(())).error is None
    gpu.used_mib = 300
    outcome = await one.wake(("0",))
    assert str(outcome.error) == "of GPU 0 700 MiB are free, 800 wanted; held by game (pid 7, 300 MiB)"
    assert outcome.is_out_of_memory
    assert one.devices == ("0",)


async def test_its_end_is_over_when_the_holder_has_left() -> None:
    one = program()
    async with asyncio.TaskGroup() as tasks:
        ending = tasks.create_task(one.evict(STOP))
        await asyncio.sleep(0)
        assert not ending.done()
        one.holder_left.set()
    assert ending.result().residency == Cold()


async def test_a_holder_that_does_not_end_its_program_has_it_killed(monkeypatch) -> None:
    monkeypatch.setattr(leased_program, "HOLDER_SECONDS", 0.0)
    one = program(stop_timeout_seconds=0.0)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, env={**os.environ, LEASE_VARIABLE: one.token}) as process:
        outcome = await one.evict(STOP)
        assert outcome.error is None
        assert process.wait() == -9


async def test_a_program_that_survives_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(leased_program, "KILL_SECONDS", 0.0)
    monkeypatch.setattr(leased_program, "kill_marked", lambda variable, value: [4711])
    one = program()
    one.holder_left.set()
    outcome = await one.evict(STOP)
    assert str(outcome.error) == "processes of the program (pid 4711) survive SIGKILL: see dmesg"


async def test_a_program_outlives_llmux() -> None:
    one = program()
    one.outlives_llmux = True
    assert (await one.evict(STOP)).residency == Cold()
