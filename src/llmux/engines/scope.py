"""Work on an engine that goes on only as long as the engine lives and nobody interrupts."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from llmux.engines.control_calls import ControlCallFailed
from llmux.engines.process import EngineProcess, describe_exit
from llmux.errors import LlmuxError

EXIT_NOTICE_SECONDS = 1.0
DYING_SECONDS = 0.3
"""What an engine that answers 500 is given to end."""
LINES_SHOWN = 8


class EngineFailure(LlmuxError):
    """An engine did not do what it should; the text says what, with its last words where it has any."""


class EngineScope:
    """Runs one piece of work at a time; ``break_off`` makes it fail, and whatever is run until ``reset``."""

    def __init__(self, process: Callable[[], EngineProcess | None]) -> None:
        """``process``: the engine's, where it runs."""
        self._process = process
        self._scope: asyncio.Timeout | None = None
        self._interruption: str | None = None

    def reset(self) -> None:
        """Forget what broke the last work off."""
        self._interruption = None

    def break_off(self, reason: str) -> None:
        """Make the work under way fail now."""
        self._interruption = reason
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def run(self, work: Coroutine[Any, Any, object], limit_seconds: float | None, what: str) -> None:
        """Do the work; raises EngineFailure if it fails, takes too long, is broken off, or the engine ends."""
        try:
            async with asyncio.timeout(limit_seconds) as self._scope:
                process = self._process()
                if process is not None and process.exit_status is not None:
                    self.break_off(exit_report(process, process.exit_status))
                elif self._interruption is not None:
                    self.break_off(self._interruption)
                await work
        except TimeoutError:
            limit = "was allowed" if limit_seconds is None else f"{limit_seconds:g} s"
            reason = self._interruption or f"{what} took longer than {limit}{shown_tail(self._process())}"
            raise EngineFailure(reason) from None
        except ControlCallFailed as failure:
            # From here on there is nothing to break off: an exit that is heard of meanwhile is the explanation.
            self._scope = None
            raise EngineFailure(await self._explain(failure)) from failure
        finally:
            self._scope = None
            work.close()

    async def _explain(self, failure: ControlCallFailed) -> str:
        """A lost connection usually means a dying engine, a 500 often: its exit says more, and comes in a moment."""
        process = self._process()
        if process is None or (failure.status is not None and failure.status < 500):
            return str(failure)
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_NOTICE_SECONDS if failure.status is None else DYING_SECONDS):
                return exit_report(process, await process.wait_exited())
        return f"{failure}{shown_tail(process)}"


def exit_report(process: EngineProcess | None, status: int) -> str:
    """How an engine ended, and what it said last."""
    return f"the engine ended with {describe_exit(status)}{shown_tail(process)}"


def shown_tail(process: EngineProcess | None) -> str:
    """What an engine said last, to be put after a sentence; empty where it said nothing."""
    lines = () if process is None else process.tail[-LINES_SHOWN:]
    return "; its last lines: " + " | ".join(lines) if lines else ""
