"""What is done when other programs take GPU memory; what the GPU says is the test's."""

import asyncio

import pytest

from llmux.core.identifiers import EVERY_GPU
from llmux.core.states import Asleep, Cold, Serving
from llmux.errors import GpusUnreadable
from llmux.gpus.foreign import ForeignUse
from llmux.gpus.memory import GpuProcess
from llmux.runtime.memory_pressure_watch import MemoryPressureWatch
from tests.support.scripted import Runtime, model, scripted_runtime

RESERVE_MIB = 300
GAME = GpuProcess(7, "game", 200)


class Gpu:
    """What is free, and who else is there."""

    free_mib = 1000
    processes: tuple[GpuProcess, ...] = ()
    reads = 0

    def read(self) -> dict[object, ForeignUse]:
        self.reads += 1
        return {EVERY_GPU: ForeignUse(self.free_mib, self.processes)}


def watch(runtime: Runtime, gpu: Gpu) -> MemoryPressureWatch:
    return MemoryPressureWatch(
        runtime.scheduler, runtime.controller, RESERVE_MIB, gpu.read, runtime.metrics.memory_pressure_began
    )


async def test_an_idle_model_leaves_while_memory_is_missing_and_is_stopped_if_that_was_not_enough() -> None:
    async with scripted_runtime(model("a")) as runtime:
        gpu = Gpu()
        pressure = watch(runtime, gpu)
        await pressure.look()
        assert gpu.reads == 0, "none of our engines has any of the GPU"
        await runtime.operations.wake("a")
        gpu.free_mib = 100
        await pressure.look()
        assert isinstance(runtime.scheduler.state("a"), Serving), "it is our own memory"
        gpu.processes = (GAME,)
        await pressure.look()
        while not isinstance(runtime.scheduler.state("a"), Asleep):
            await asyncio.sleep(0)
        await pressure.look()
        while not isinstance(runtime.scheduler.state("a"), Cold):
            await asyncio.sleep(0)
        gpu.processes, gpu.free_mib = (), 1000
        await pressure.look()
        pressures = next(one for one in runtime.metrics.collect() if one.name == "llmux_gpu_memory_pressures")
        assert [sample.value for sample in pressures.samples] == [1]


async def test_a_gpu_that_cannot_be_read_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.runtime.memory_pressure_watch.LOOK_SECONDS", 0.0)
    async with scripted_runtime(model("a")) as runtime:
        await runtime.operations.wake("a")

        def unreadable() -> dict[object, ForeignUse]:
            raise GpusUnreadable("no driver")

        await MemoryPressureWatch(runtime.scheduler, runtime.controller, RESERVE_MIB, unreadable).run()
