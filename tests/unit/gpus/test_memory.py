"""Amounts of GPU memory, and the bounded wait until enough of it is free."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from structlog.testing import capture_logs

from llmux.errors import GpusUnreadable
from llmux.gpus import memory
from llmux.gpus.memory import LEAST_SHARE_OF_A_PART, GpuHeadroom, GpuMemory, GpuProcess, StartNeed, total_used_mib

pytestmark = pytest.mark.anyio


def test_a_need_is_a_share_of_the_gpu_or_an_amount() -> None:
    gpu = GpuMemory("GPU-a", 24_000, 1_000)
    assert gpu.free_mib == 23_000
    assert StartNeed(share=0.9).on(gpu) == 21_600
    assert StartNeed(mib=900).on(gpu) == 900


def test_used_memory_of_all_gpus() -> None:
    assert total_used_mib([GpuMemory("a", 10, 3), GpuMemory("b", 10, 4)]) == 7
    assert total_used_mib([]) == 0


class Gpus:
    """A reader of one GPU that reports the given used amounts one after the other, then the last; None is a failure."""

    def __init__(self, *used_mib: int | None) -> None:
        self.used_mib = list(used_mib)
        self.reads = 0
        self.fails_at_processes = False

    def read_memory(self) -> tuple[GpuMemory, ...]:
        self.reads += 1
        used = self.used_mib[0] if len(self.used_mib) == 1 else self.used_mib.pop(0)
        if used is None:
            raise GpusUnreadable("lost")
        return (GpuMemory("GPU-a", 1000, used),)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        if self.fails_at_processes:
            raise GpusUnreadable("lost")
        return (GpuProcess(17, "python", 300),)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "POLL_INTERVAL_SECONDS", 0.001)


def warnings_of(logs: Sequence[object]) -> list[object]:
    return [entry for entry in logs if isinstance(entry, dict) and entry["log_level"] == "warning"]


async def test_a_start_waits_until_its_share_of_the_gpu_is_free() -> None:
    gpus = Gpus(900, 500, 80, 80)
    with capture_logs() as logs:
        await GpuHeadroom("m", gpus, StartNeed(share=0.92)).wait_to_start()
    assert gpus.reads == 3
    assert warnings_of(logs) == []


async def test_after_the_time_limit_a_warning_names_the_processes_that_hold_the_memory() -> None:
    with capture_logs() as logs:
        await GpuHeadroom("m", Gpus(300), StartNeed(share=0.92), wait_seconds=0.01).wait_to_start()
    (warning,) = logs
    assert warning["log_level"] == "warning"
    assert warning["held_by"] == ["python (pid 17, 300 MiB)"]
    assert warning["gpus"] == ["GPU-a: 920 MiB needed, 700 free"]


async def test_the_warning_comes_without_processes_if_they_cannot_be_read() -> None:
    gpus = Gpus(300)
    gpus.fails_at_processes = True
    with capture_logs() as logs:
        await GpuHeadroom("m", gpus, StartNeed(mib=800), wait_seconds=0.01).wait_to_start()
    assert logs[0]["held_by"] == []


async def test_a_wake_waits_until_as_much_is_free_as_the_engine_released() -> None:
    gpus = Gpus(800, 100)
    headroom = GpuHeadroom("m", gpus, None)
    # 600 MiB by the first step of the eviction, 250 by the second.
    headroom.record_freed([GpuMemory("GPU-a", 1000, 900)], [GpuMemory("GPU-a", 1000, 300)])
    headroom.record_freed([GpuMemory("GPU-a", 1000, 300)], [GpuMemory("GPU-a", 1000, 50)])
    with capture_logs() as logs:
        await headroom.wait_to_wake()
    assert gpus.reads == 2
    assert warnings_of(logs) == []
    headroom.forget_freed()
    await headroom.wait_to_wake()
    assert gpus.reads == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda gpus: GpuHeadroom("m", gpus, None),
        lambda gpus: GpuHeadroom("m", gpus, StartNeed(share=0.9), wait_seconds=0.0),
    ],
    ids=["need unknown", "no time limit"],
)
async def test_without_a_need_or_a_time_limit_nothing_is_read(build: Callable[[Gpus], GpuHeadroom]) -> None:
    gpus = Gpus(1000)
    async with asyncio.timeout(5):
        await build(gpus).wait_to_start()
    assert gpus.reads == 0


async def test_gpus_that_cannot_be_read_delay_no_start_and_are_read_once() -> None:
    gpus = Gpus(None)
    headroom = GpuHeadroom("m", gpus, StartNeed(share=0.9), wait_seconds=60)
    async with asyncio.timeout(5):
        await headroom.wait_to_start()
        await headroom.wait_to_start()
        assert await headroom.read() == ()
    assert gpus.reads == 1
    assert await GpuHeadroom("m", None, StartNeed(share=0.9)).read() == ()


async def test_what_the_own_processes_hold() -> None:
    gpus = Gpus(300)
    headroom = GpuHeadroom("m", gpus, None)
    assert await headroom.held_mib(lambda pid: pid == 17) == 300
    assert await headroom.held_mib(lambda pid: pid == 18) == 0
    gpus.fails_at_processes = True
    assert await headroom.held_mib(lambda pid: True) is None
    assert await GpuHeadroom("m", None, None).held_mib(lambda pid: True) is None


async def test_a_wake_waits_for_what_was_freed_after_the_eviction_too() -> None:
    """Of 300 MiB, 100 were seen to be freed; the rest came later."""
    gpus = Gpus(750, 750, 680)
    headroom = GpuHeadroom("m", gpus, None)
    headroom.record_freed([GpuMemory("GPU-a", 1000, 350)], [GpuMemory("GPU-a", 1000, 250)], 300)
    await headroom.wait_to_wake(lambda pid: False)
    assert gpus.reads == 3, "250 MiB are not enough"


class Releasing(Gpus):
    """The engine's process gives its memory back after some reads."""

    def __init__(self, *held_mib: int | None) -> None:
        super().__init__(300)
        self.held_mib = list(held_mib)

    def read_processes(self) -> tuple[GpuProcess, ...]:
        return (GpuProcess(17, "python", self.held_mib.pop(0) if len(self.held_mib) > 1 else self.held_mib[0]),)


@pytest.mark.parametrize(
    ("held_mib", "wait_seconds", "kept_mib"),
    [
        pytest.param([300, 290, 100], 60.0, None, id="late"),
        pytest.param([300], 0.02, 300, id="never"),
        pytest.param([250], 0.02, 250, id="too-little"),
        pytest.param([240], 0.02, None, id="enough"),
        pytest.param([None], 60.0, None, id="unknown"),
        pytest.param([300], 0.0, None, id="not-checked"),
    ],
)
async def test_whether_an_engine_that_says_so_has_released_its_memory(
    held_mib: list[int | None], wait_seconds: float, kept_mib: int | None
) -> None:
    headroom = GpuHeadroom("m", Releasing(*held_mib), None, wait_seconds=wait_seconds)
    assert await headroom.wait_until_freed(lambda pid: True, 300) == kept_mib


@pytest.mark.parametrize(("held_mib", "kept_mib"), [(300, 300), (298, 298), (297, None)])
async def test_of_an_engine_that_keeps_its_weights_a_hundredth_is_enough(held_mib: int, kept_mib: int | None) -> None:
    headroom = GpuHeadroom("m", Releasing(held_mib), None, wait_seconds=0.02)
    assert await headroom.wait_until_freed(lambda pid: True, 300, LEAST_SHARE_OF_A_PART) == kept_mib


@pytest.mark.parametrize(
    ("held_mib", "wait_seconds", "settled"),
    [
        pytest.param([300, 120, 40, 40, 90], 60.0, {"": 40}, id="in-the-end"),
        pytest.param([300, None], 60.0, None, id="unknown"),
        pytest.param([40], 0.0, None, id="not-waited-for"),
    ],
)
async def test_what_is_still_held_when_it_changes_no_more(
    held_mib: list[int | None], wait_seconds: float, settled: dict[str, int] | None
) -> None:
    headroom = GpuHeadroom("m", Releasing(*held_mib), None, wait_seconds=wait_seconds)
    assert await headroom.settled_by_gpu(lambda pid: True) == settled


async def test_what_is_held_of_each_gpu() -> None:
    class Two(Gpus):
        def read_processes(self) -> tuple[GpuProcess, ...]:
            rows = ((17, 300, "a"), (18, 200, "a"), (17, 100, "b"), (19, 900, "b"))
            return tuple(GpuProcess(pid, "python", mib, gpu) for pid, mib, gpu in rows)

    headroom = GpuHeadroom("m", Two(0), None)
    assert await headroom.held_by_gpu(lambda pid: pid != 19) == {"a": 500, "b": 100}
    assert await headroom.held_mib(lambda pid: pid != 19) == 600
