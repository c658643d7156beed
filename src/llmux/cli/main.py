"""The command line: one program with commands, and the spellings of 0.7.7."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from llmux import __version__
from llmux.cli import control
from llmux.cli.check import check
from llmux.cli.checkpoint import checkpoint
from llmux.cli.demo import demo
from llmux.cli.legacy import translate
from llmux.cli.replay import replay
from llmux.cli.restore import restore
from llmux.cli.schema import schema
from llmux.cli.serve import serve
from llmux.cli.simulate import simulate
from llmux.cli.validate import validate

EPILOG = "0.7.7's spellings work too: llmux --config FILE [--port N] [--verbose]."

application = typer.Typer(name="llmux", add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmux {__version__}")
        raise typer.Exit


@application.callback(epilog=EPILOG)
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint in front of many models that share the GPUs. Clients only change 'model'."""


RUN: tuple[Callable[..., None], ...] = (demo, serve, check, schema)
TRY: tuple[Callable[..., None], ...] = (validate, checkpoint, restore)
PLAN: tuple[Callable[..., None], ...] = (simulate, replay)
OPERATE: tuple[Callable[..., None], ...] = (
    control.status,
    control.switch,
    control.pin,
    control.unpin,
    control.mode,
    control.sleep,
    control.wake,
    control.eviction,
)
PANELS = (
    ("Run", RUN),
    ("Try a model's engine", TRY),
    ("Plan with recorded traffic", PLAN),
    ("Operate a running llmux", OPERATE),
)
for panel, commands in PANELS:
    for command in commands:
        application.command(rich_help_panel=panel)(command)


def main() -> None:
    """The program's entry point."""
    application(translate(sys.argv[1:]))
