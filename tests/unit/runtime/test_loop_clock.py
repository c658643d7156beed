"""The scheduler's time, on a loop that the test stops."""

import asyncio
from collections.abc import Callable

from llmux.core.settings import Limits
from llmux.errors import QueueTimeout
from llmux.runtime.loop_clock import STOPPED_SECONDS, TICK_SECONDS, LoopClock
from tests.support.scripted import model, scripted_runtime


class FakeLoop(asyncio.AbstractEventLoop):
    """Has a clock and one timer; ``pass_time`` moves the one and fires the other."""

    def __init__(self) -> None:
        self.at = 1000.0
        self._due: tuple[float, Callable[[], None]] | None = None

    def time(self) -> float:
        return self.at

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def]
        self._due = (self.at + delay, callback)

    def run(self, seconds: float) -> None:
        """Let time pass, with every tick in it."""
        until = self.at + seconds
        while self._due is not None and self._due[0] <= until:
            self.at, tick = self._due
            tick()
        self.at = until

    def stop_for(self, seconds: float) -> None:
        """Let time pass without a turn of the loop."""
        self.at += seconds


def test_time_passes_while_the_loop_turns_however_rarely_the_clock_is_read() -> None:
    loop = FakeLoop()
    clock = LoopClock(loop)
    began = clock.now()
    loop.run(1000.0)
    assert clock.now() - began == 1000.0
    loop.stop_for(STOPPED_SECONDS - TICK_SECONDS)
    assert clock.now() - began == 1000.0 + STOPPED_SECONDS - TICK_SECONDS, "a busy loop"


def test_time_does_not_pass_while_the_loop_is_stopped() -> None:
    loop = FakeLoop()
    clock = LoopClock(loop)
    began = clock.now()
    for number in range(1, 4):
        loop.stop_for(100.0)
        assert clock.now() == began + number - 1, "before any timer"
        loop.run(1.0)
        assert clock.now() == began + number
        assert clock.on_loop(clock.now()) == loop.time()


async def test_deadlines_that_fell_into_a_stop_are_moved_by_it() -> None:
    loop = asyncio.get_running_loop()
    stopped_seconds = 0.0
    real_time = loop.time
    loop.time = lambda: real_time() + stopped_seconds  # type: ignore[method-assign]
    limits = Limits(min_active_seconds=0.0, request_timeout_seconds=0.4)
    async with scripted_runtime(model("a"), limits=limits) as runtime:
        runtime.engines["a"].wake_gate.clear()
        began = runtime.controller.now()
        holder = runtime.ask("a")
        stopped_seconds = 600.0
        for _ in range(5):
            await asyncio.sleep(0)
        assert holder.calls == []
        await holder.wait("rejected")
        assert isinstance(holder.error, QueueTimeout)
        assert 0.4 <= runtime.controller.now() - began < 100.0
