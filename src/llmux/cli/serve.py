"""``llmux serve``: run the gateway."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from llmux.config.load import load, with_overrides
from llmux.config.settings import Settings
from llmux.errors import ConfigError, LlmuxError
from llmux.observability.logging import configure_logging
from llmux.server.app import SIGNALS
from llmux.server.app import serve as serve_forever

EXIT_INTERNAL_ERROR = 70

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="YAML or JSON file; those of llmux 0.7.7 work unchanged.")
]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on, over the file's.")]
PortOption = Annotated[int | None, typer.Option("--port", "-p", min=0, max=65535, help="Port, over the file's.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show debug logs, and the engines' output.")]


def serve(
    config: ConfigOption = Path("config.json"),
    host: HostOption = None,
    port: PortOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve the configured models on one OpenAI-compatible endpoint.

    Engines are started when the first request for their model comes. SIGTERM or Ctrl-C drains and stops everything; a
    second one does not wait. Exit codes: 0 stopped, 1 could not start, 2 wrong usage, 70 internal error.
    """
    settings = load_settings(config, host, port)
    configure_logging(settings.log_level.value, verbose=verbose)
    run_server(serve_forever(settings))


def load_settings(config: Path, host: str | None, port: int | None) -> Settings:
    """The settings of a command line; ends the program with 1 if they cannot be used."""
    try:
        loaded = load(config)
        settings = with_overrides(loaded.settings, host=host, port=port)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(f"{error.source or config}: {problem}", err=True)
        raise typer.Exit(1) from None
    for warning in loaded.warnings:
        typer.echo(f"{config}: warning: {warning}", err=True)
    return settings


def run_server(main: Coroutine[Any, Any, None]) -> None:
    """Run a server to its end on the best event loop there is, and turn its errors into exit codes."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_deaf_afterwards(main))
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


async def _deaf_afterwards(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end; signals that come between it and the process's exit have nothing left to stop."""
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
