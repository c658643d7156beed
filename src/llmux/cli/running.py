"""How a command runs its coroutine: the event loop, progress on standard error, and exit codes for errors."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import typer

from llmux.errors import LlmuxError
from llmux.observability.logging import configure_logging
from llmux.server.signals import SIGNALS

INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""
EXIT_INTERNAL_ERROR = 70
"""``EX_SOFTWARE`` of sysexits.h."""

Result = TypeVar("Result")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
IgnoredPortOption = Annotated[int | None, typer.Option("--port", "-p", hidden=True, help="As in 0.7.7; has no effect.")]
"""0.7.7 accepted its server's ``--port`` also with ``--validate`` and its like."""


def run_server(main: Coroutine[Any, Any, None]) -> None:
    """Run a server to its end, on uvloop if it is installed. LlmuxError ends the program with 1, any other with 70."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_ignoring_signals_afterwards(main))
    except LlmuxError as error:
        _report(error)
        raise typer.Exit(1) from None
    except BaseExceptionGroup as group:
        known, unknown = group.split(LlmuxError)
        if unknown is None and known is not None:
            for failure in known.exceptions:
                _report(failure)
            raise typer.Exit(1) from None
        raise _internal_error(group) from None
    except Exception as error:
        raise _internal_error(error) from None


def run_engine_job(job: Coroutine[Any, Any, Result], *, verbose: bool) -> Result:
    """Run a job on one engine to its end and return its result.

    LlmuxError ends the program with 1 and Ctrl-C with 130, in both cases after the engine has been stopped.
    """
    configure_logging("warning", verbose=verbose)
    try:
        with asyncio.Runner() as runner:
            return runner.run(job)
    except LlmuxError as error:
        _report(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def show_step(step: str) -> None:
    """Print the step that begins to standard error; standard output is for the result."""
    typer.echo(f"{step} ...", err=True)


async def _ignoring_signals_afterwards(main: Coroutine[Any, Any, None]) -> None:
    # Nothing is left to stop, and a second Ctrl-C before the process ends would turn exit code 0 into a traceback.
    try:
        await main
    finally:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            # Otherwise the loop would make it deadly again when it is closed.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def _internal_error(error: BaseException) -> typer.Exit:
    """Print the traceback here: at the end of the interpreter a standard error that nobody reads would block."""
    sys.excepthook(type(error), error, error.__traceback__)
    return typer.Exit(EXIT_INTERNAL_ERROR)


def _report(error: BaseException) -> None:
    typer.echo(f"llmux: {error}", err=True)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
