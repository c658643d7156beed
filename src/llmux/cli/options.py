"""Options that several commands have, and what they are turned into."""

from pathlib import Path
from typing import Annotated

import typer

from llmux.cli.remote import check_url
from llmux.config.load import load, with_overrides
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:3000"


def _url(text: str) -> str:
    try:
        return check_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def eviction_of(text: str) -> Eviction:
    """``weights+process`` of a command line."""
    try:
        return Eviction.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


UrlOption = Annotated[
    str, typer.Option("--url", envvar="LLMUX_URL", parser=_url, metavar="URL", help="Where llmux listens.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--admin-key", envvar="LLMUX_ADMIN_KEY", metavar="KEY", help="Needed if llmux has an admin_key."),
]


def load_settings(config: Path, host: str | None = None, port: int | None = None) -> Settings:
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
