"""The command line: one program with commands, and the spellings of 0.7.7.

A command's module is imported only when that command runs: ``llmux --help`` and ``--version`` must not wait for the
HTTP and configuration libraries that ``serve`` needs (1.1 s of imports on a slow core, against 0.2 s).
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from llmux import __version__

EPILOG = "0.7.7's spellings work too: llmux --config FILE [--port N] [--verbose]."

LEGACY_COMMAND_OPTIONS = {"--validate": "validate", "--checkpoint": "checkpoint", "--restore-detached": "restore"}
HELP_OPTIONS = {"-h", "--help", "-V", "--version"}


class CommandEntry(NamedTuple):
    """A command, as far as the list of commands needs it; ``summary`` is the first sentence of its own help."""

    module: str
    name: str
    panel: str
    summary: str


COMMANDS = (
    CommandEntry(
        "demo", "demo", "Run", "Watch three models share one virtual GPU that holds one of them: no GPU needed."
    ),
    CommandEntry("serve", "serve", "Run", "Serve the configured models on one OpenAI-compatible endpoint."),
    CommandEntry("check", "check", "Run", "Check the configuration file and name everything that is wrong with it."),
    CommandEntry(
        "schema", "schema", "Run", "Print the JSON schema of the configuration file, for editors and validators."
    ),
    CommandEntry(
        "validate",
        "validate",
        "Try a model's engine",
        "Start a model alone, put it to sleep and wake it by each policy, and judge what became of it.",
    ),
    CommandEntry(
        "checkpoint",
        "checkpoint",
        "Try a model's engine",
        "Start a model alone, and put its engine into an image, from which llmux then starts it in a moment.",
    ),
    CommandEntry(
        "restore",
        "restore",
        "Try a model's engine",
        "Bring a model's engine back from its image, wake it and ask it; it goes on running when this has ended.",
    ),
    CommandEntry(
        "simulate",
        "simulate",
        "Plan with recorded traffic",
        "Try policies on recorded traffic, in virtual time, with the scheduler that serves.",
    ),
    CommandEntry(
        "replay",
        "replay",
        "Plan with recorded traffic",
        "Send recorded traffic to a running llmux, and report what 'llmux simulate' reports.",
    ),
    CommandEntry(
        "control",
        "status",
        "Operate a running llmux",
        "Show which model is on the GPU, and of each model its state and who waits for it.",
    ),
    CommandEntry(
        "control", "switch", "Operate a running llmux", "Bring a model onto the GPU and wait until it is there."
    ),
    CommandEntry(
        "control",
        "pin",
        "Operate a running llmux",
        "Bring a model onto the GPU and serve no other until it is unpinned.",
    ),
    CommandEntry("control", "unpin", "Operate a running llmux", "Let requests decide again which model is on the GPU."),
    CommandEntry(
        "control", "mode", "Operate a running llmux", "Choose whether requests switch models, or only you do."
    ),
    CommandEntry(
        "control",
        "sleep",
        "Operate a running llmux",
        "Take a model off the GPU once its requests have ended, and wait for that.",
    ),
    CommandEntry(
        "control",
        "wake",
        "Operate a running llmux",
        "Bring a model onto the GPU and wait until it is there; the mode stays as it is.",
    ),
    CommandEntry(
        "control",
        "eviction",
        "Operate a running llmux",
        "Show how models leave the GPU, or change it for one of them until llmux ends.",
    ),
)


class LazyGroup(TyperGroup):
    """Lists commands by their entries, and imports the one that runs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if listed is None or name is None else load_command(name), rest


def load_command(name: str) -> Any:
    """The command itself, with its options."""
    entry = next(entry for entry in COMMANDS if entry.name == name)
    function = getattr(import_module(f"llmux.cli.{entry.module}"), entry.name)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(entry.name)(function)
    return typer.main.get_command(alone)


application = typer.Typer(
    name="llmux", cls=LazyGroup, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)


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


def _listed() -> None:
    """Stands for a command in the list; ``LazyGroup`` runs the command itself."""


for _entry in COMMANDS:
    application.command(_entry.name, help=_entry.summary, rich_help_panel=_entry.panel)(_listed)


def translate(arguments: Sequence[str]) -> list[str]:
    """Turn a command line of 0.7.7, which had options where llmux has commands, into one of today.

    ``-c F`` serves, ``--validate M`` validates. An option of 0.7.7 that excludes another one is left where it is, so
    that the command refuses it.
    """
    if not arguments:
        return ["serve"]
    first = arguments[0]
    if not first.startswith("-") or first in HELP_OPTIONS:
        return ["--help" if argument == "-h" else argument for argument in arguments]
    given = list(arguments)
    for option, command in LEGACY_COMMAND_OPTIONS.items():
        for position, argument in enumerate(given):
            if argument == option:
                return [command, *given[position + 1 : position + 2], *given[:position], *given[position + 2 :]]
            if argument.startswith(f"{option}="):
                return [command, argument.partition("=")[2], *given[:position], *given[position + 1 :]]
    return ["serve", *given]


def main() -> None:
    """The program's entry point."""
    application(translate(sys.argv[1:]))
