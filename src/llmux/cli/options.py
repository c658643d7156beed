"""Options and arguments that several commands share, and the checks of their values."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from llmux.cli.urls import check_url
from llmux.config import machine
from llmux.config.fields import Bytes
from llmux.config.load import load, with_overrides
from llmux.config.remedies import about_eviction
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.errors import ConfigError
from llmux.hosts.local import MIB

DEFAULT_URL = "http://127.0.0.1:3000"

PIPE_WIDTH = 1000
"""Columns of a table that is not printed to a terminal: wide enough that each model stays on one line."""


def parse_eviction(text: str) -> Eviction:
    """``weights+process``. Raises typer.BadParameter, which ends the program with 2."""
    try:
        return Eviction.parse(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not WEIGHTS+PROCESS; {about_eviction(text)}") from None


def size_in_mib(text: str) -> int:
    """A size as the configuration has it, rounded up. Raises pydantic's ValidationError."""
    return -(-int(TypeAdapter(Bytes).validate_python(text)) // MIB)


def _parse_url(text: str) -> str:
    try:
        return check_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model of the configuration.")]
ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration file, YAML or JSON.")
]
UrlOption = Annotated[
    str,
    typer.Option("--url", envvar="LLMUX_URL", parser=_parse_url, metavar="URL", help="Address of the running llmux."),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--admin-key", envvar="LLMUX_ADMIN_KEY", metavar="KEY", help="Its admin_key, if it is configured with one."
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log at debug level, including the engines' output.")
]


def load_settings(
    config: Path, host: str | None = None, port: int | None = None, *, starts_engines: bool = True
) -> Settings:
    """The settings from a file and the command line. Ends the program with 1, and all problems, if they are invalid.

    ``starts_engines``: warn also of what this machine lacks.
    """
    try:
        loaded = load(config)
        settings = with_overrides(loaded.settings, host=host, port=port)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(f"{error.source or config}: {problem}", err=True)
        raise typer.Exit(1) from None
    for warning in (*loaded.warnings, *(machine.warnings(settings) if starts_engines else ())):
        typer.echo(f"{config}: warning: {warning}", err=True)
    return settings
