"""How a command runs a server: on which event loop, and what its errors become."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import typer

from llmux.errors import LlmuxError
from llmux.server.app import SIGNALS

EXIT_INTERNAL_ERROR = 70
"""``EX_SOFTWARE`` of sysexits.h."""


def run_server(main: Coroutine[Any, Any, None]) -> None:
    """Run a server to its end, on uvloop where it is installed, and turn its errors into exit codes."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_ignoring_signals_afterwards(main))
    except LlmuxError as error:
        _explain(error)
        raise typer.Exit(1) from None
    except BaseExceptionGroup as group:
        known, unknown = group.split(LlmuxError)
        if unknown is None and known is not None:
            for failure in known.exceptions:
                _explain(failure)
            raise typer.Exit(1) from None
        sys.excepthook(type(group), group, group.__traceback__)
        raise typer.Exit(EXIT_INTERNAL_ERROR) from None


async def _ignoring_signals_afterwards(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end, and ignore signals between that and the process's exit: there is nothing left to stop."""
    try:
        await main
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _explain(error: BaseException) -> None:
    typer.echo(f"llmux: {error}", err=True)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
