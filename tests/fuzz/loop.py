"""An event loop without sockets and clocks, for inputs that must mean the same every time."""

import asyncio
import contextvars
import time
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

MAX_TURNS = 100_000
"""Bounds what one input may keep the loop busy with: more is an endless loop."""


class Stuck(Exception):
    """Callbacks went on calling back."""


class DeterministicLoop(asyncio.AbstractEventLoop):
    """Runs callbacks in turns, as asyncio's own loops do. Timers never fire, and no connection can be made.

    What goes to a thread elsewhere runs at once here. Exceptions of callbacks are kept in ``failures``.
    """

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self.failures: list[BaseException] = []
        self.slowest_turn_seconds = 0.0
        """CPU time of the slowest turn since ``reset``, without what goes to threads."""
        self._elsewhere_seconds = 0.0

    def reset(self) -> None:
        """Forget what the last input has left behind."""
        self._ready.clear()
        self.failures.clear()
        self.slowest_turn_seconds = 0.0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is left to be called back."""
        return not self._ready

    def turn(self) -> None:
        """Run what is ready now; what that makes ready has to wait for the next turn."""
        events._set_running_loop(self)
        self._elsewhere_seconds = 0.0
        began = time.process_time()
        try:
            for _ in range(len(self._ready)):
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(None)
        seconds = time.process_time() - began - self._elsewhere_seconds
        self.slowest_turn_seconds = max(self.slowest_turn_seconds, seconds)

    def settle(self) -> None:
        """Run until nothing is ready any more; raises Stuck, or what a callback raised."""
        for _ in range(MAX_TURNS):
            if self.failures:
                raise self.failures[0]
            if not self._ready:
                return
            self.turn()
        raise Stuck(f"callbacks are still being made after {MAX_TURNS} turns")

    def run(self, function: Callable[..., object], *args: object) -> None:
        """Call a function as the loop would, in a turn of its own."""
        self.call_soon(function, *args)
        self.turn()

    # What the code under test may use of a loop.

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return asyncio.TimerHandle(when, callback, args, self, context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def time(self) -> float:
        return time.monotonic()

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **_: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self)

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        began = time.process_time()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        self._elsewhere_seconds += time.process_time() - began
        return future

    async def create_connection(self, *_: object, **__: object) -> NoReturn:
        raise ConnectionRefusedError

    create_unix_connection = create_connection

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None: ...

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context.get("exception") or RuntimeError(context["message"]))
