"""The command line: one program with commands, and the spellings of 0.7.7."""

import sys
from typing import Annotated

import typer

from llmux import __version__
from llmux.cli.check import check
from llmux.cli.legacy import translate
from llmux.cli.schema import schema
from llmux.cli.serve import serve

application = typer.Typer(
    name="llmux",
    help="One OpenAI-compatible endpoint in front of many models that share the GPUs. Clients only change 'model'.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmux {__version__}")
        raise typer.Exit


@application.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint in front of many models that share the GPUs. Clients only change 'model'."""


application.command()(serve)
application.command()(check)
application.command()(schema)


def main() -> None:
    """The program's entry point."""
    application(translate(sys.argv[1:]))
