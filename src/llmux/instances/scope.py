"""Limits a piece of work on an engine to the engine's life, and lets it be interrupted."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from llmux import os_errors
from llmux.errors import ControlCallFailed, FailureReason, LlmuxError
from llmux.instances.process import EngineProcess, describe_exit

T = TypeVar("T")

EXIT_NOTICE_SECONDS = 1.0
"""From a lost connection to the report of the engine's exit; ample, since the shim reports it at once."""
EXIT_AFTER_500_SECONDS = 0.3
"""A dying engine answers 500 up to 0.14 s before its ``/health`` fails (measured)."""
LINES_SHOWN = 8


class EngineFailure(LlmuxError):
    """An engine did not do what it should; the reason says what, with the engine's last lines of output if any."""

    def __init__(self, reason: FailureReason) -> None:
        self.reason = reason
        super().__init__(reason.text)


def reason_of_failure(failure: LlmuxError | OSError) -> FailureReason:
    """Why a wake failed; an error of the operating system is this machine's fault, and as expected as an engine's."""
    match failure:
        case EngineFailure():
            return failure.reason
        case OSError():
            return FailureReason(os_errors.describe(failure), os_errors.reason_of(failure))
        case _:
            return FailureReason(str(failure))


def with_output(
    sentence: str, lines: Sequence[str], known_cause: str | None, *, whose: str = "its", cause: str = ""
) -> FailureReason:
    """A sentence with the last of some lines of output, for the operator; for clients with what is known from them.

    ``whose``: the lines are "its", the engine's, or "the" lines of whatever printed them. ``cause`` takes the
    sentence's place for clients.
    """
    shown = lines[-LINES_SHOWN:]
    return FailureReason(
        sentence + (f"; {whose} last lines: {' | '.join(shown)}" if shown else ""),
        (cause or sentence) + (f": {known_cause}" if known_cause else ""),
    )


class EngineScope:
    """Runs one piece of work at a time. An interruption fails it, and all later work until ``reset``."""

    def __init__(
        self, process: Callable[[], EngineProcess | None], known_cause: Callable[[Sequence[str]], str | None]
    ) -> None:
        """``process`` gives the engine's process, if there is one; ``known_cause`` what its last lines tell."""
        self._process = process
        self._known_cause = known_cause
        self._timeout: asyncio.Timeout | None = None
        self._interruption: FailureReason | None = None

    def reset(self) -> None:
        """Forget the last interruption."""
        self._interruption = None

    def interrupt(self, reason: FailureReason) -> None:
        """Fail the work under way now."""
        self._interruption = reason
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def run(self, work: Coroutine[Any, Any, T], limit_seconds: float | None, what: str) -> T:
        """Do the work and return its result.

        Raises EngineFailure if it fails, takes too long, is interrupted, or the engine ends.
        """
        try:
            async with asyncio.timeout(limit_seconds) as self._timeout:
                process = self._process()
                if process is not None and process.exit_status is not None:
                    self.interrupt(self.exit_report(process, process.exit_status))
                elif self._interruption is not None:
                    self.interrupt(self._interruption)
                return await work
        except TimeoutError:
            limit = "was allowed" if limit_seconds is None else f"{limit_seconds:g} s"
            reason = self._interruption or self._with_output(f"{what} took longer than {limit}", self._process())
            raise EngineFailure(reason) from None
        except ControlCallFailed as failure:
            # The work is over: an exit that is reported from here on explains its failure and interrupts nothing.
            self._timeout = None
            raise EngineFailure(await self._explain(failure)) from failure
        finally:
            self._timeout = None
            work.close()

    async def _explain(self, failure: ControlCallFailed) -> FailureReason:
        """A lost connection usually means a dying engine, a 500 often: its exit, reported in a moment, says more."""
        process = self._process()
        if process is None or (failure.status is not None and failure.status < 500):
            return FailureReason(str(failure), failure.cause)
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_NOTICE_SECONDS if failure.status is None else EXIT_AFTER_500_SECONDS):
                return self.exit_report(process, await process.wait_exited())
        return self._with_output(str(failure), process, failure.cause)

    def exit_report(self, process: EngineProcess | None, status: int) -> FailureReason:
        """How an engine ended, with its last lines of output."""
        return self._with_output(f"the engine ended with {describe_exit(status)}", process)

    def _with_output(self, sentence: str, process: EngineProcess | None, cause: str = "") -> FailureReason:
        lines = () if process is None else process.tail
        return with_output(sentence, lines, self._known_cause(lines), cause=cause)
