"""The bounded wait until GPU memory is really free."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from structlog.testing import capture_logs

from llmux.errors import GpusUnreadable
from llmux.gpus import headroom
from llmux.gpus.headroom import GpuHeadroom
from llmux.gpus.memory import GpuMemory, Holder, StartNeed

pytestmark = pytest.mark.anyio


class Gpus:
    """A reader that shows one used amount after the other, the last one for ever; None cannot be read."""

    def __init__(self, *used_mib: int | None) -> None:
        self.used_mib = list(used_mib)
        self.looks = 0
        self.fails_at_holders = False

    def read_memory(self) -> tuple[GpuMemory, ...]:
        self.looks += 1
        used = self.used_mib[0] if len(self.used_mib) == 1 else self.used_mib.pop(0)
        if used is None:
            raise GpusUnreadable("lost")
        return (GpuMemory("GPU-a", 1000, used),)

    def read_holders(self) -> tuple[Holder, ...]:
        if self.fails_at_holders:
            raise GpusUnreadable("lost")
        return (Holder(17, "python", 300),)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headroom, "LOOK_INTERVAL_SECONDS", 0.001)


def warnings_of(logs: Sequence[object]) -> list[object]:
    return [entry for entry in logs if isinstance(entry, dict) and entry["log_level"] == "warning"]


async def test_a_start_waits_until_its_share_is_free() -> None:
    gpus = Gpus(900, 500, 80, 80)
    with capture_logs() as logs:
        await GpuHeadroom("m", gpus, StartNeed(share=0.92)).wait_to_start()
    assert gpus.looks == 3
    assert warnings_of(logs) == []


async def test_what_stays_taken_is_named_and_the_engine_tried() -> None:
    with capture_logs() as logs:
        await GpuHeadroom("m", Gpus(300), StartNeed(share=0.92), wait_seconds=0.01).wait_to_start()
    (warning,) = logs
    assert warning["log_level"] == "warning"
    assert warning["held_by"] == ["python (pid 17, 300 MiB)"]
    assert warning["gpus"] == ["GPU-a: 920 MiB needed, 700 free"]


async def test_holders_that_cannot_be_read_are_left_out() -> None:
    gpus = Gpus(300)
    gpus.fails_at_holders = True
    with capture_logs() as logs:
        await GpuHeadroom("m", gpus, StartNeed(mib=800), wait_seconds=0.01).wait_to_start()
    assert logs[0]["held_by"] == []


async def test_a_sleeper_waits_for_what_it_gave_up() -> None:
    gpus = Gpus(800, 100)
    one = GpuHeadroom("m", gpus, None)
    # 600 at its first step, 250 more at its second.
    one.note_left([GpuMemory("GPU-a", 1000, 900)], [GpuMemory("GPU-a", 1000, 300)])
    one.note_left([GpuMemory("GPU-a", 1000, 300)], [GpuMemory("GPU-a", 1000, 50)])
    with capture_logs() as logs:
        await one.wait_to_wake()
    assert gpus.looks == 2
    assert warnings_of(logs) == []
    one.forget_left()
    await one.wait_to_wake()
    assert gpus.looks == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda gpus: GpuHeadroom("m", gpus, None),
        lambda gpus: GpuHeadroom("m", gpus, StartNeed(share=0.9), wait_seconds=0.0),
    ],
    ids=["need unknown", "switched off"],
)
async def test_nothing_is_looked_at(build: Callable[[Gpus], GpuHeadroom]) -> None:
    gpus = Gpus(1000)
    async with asyncio.timeout(5):
        await build(gpus).wait_to_start()
    assert gpus.looks == 0


async def test_gpus_that_cannot_be_read_hold_nobody_up() -> None:
    gpus = Gpus(None)
    one = GpuHeadroom("m", gpus, StartNeed(share=0.9), wait_seconds=60)
    async with asyncio.timeout(5):
        await one.wait_to_start()
        await one.wait_to_start()
        assert await one.read() == ()
    assert gpus.looks == 1, "it is asked only once"
    assert await GpuHeadroom("m", None, StartNeed(share=0.9)).read() == ()
