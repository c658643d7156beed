"""The command line: the list of commands, and the translation of 0.7.7's command lines.

A command's module is imported only when that command runs: ``llmux --help`` and ``--version`` must not wait for the
HTTP and configuration libraries that ``serve`` needs. Help is plain text, because rich, with which typer would draw it,
takes longer to import than everything else together.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import cleandoc
from itertools import groupby
from operator import attrgetter
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from llmux import __version__, how_built
from llmux.cli.process import hasten_imports, open_standard_descriptors, survive_harmless_signals

EPILOG = (
    "Example: llmux check -c llmux.yaml && llmux serve -c llmux.yaml. Options of a command: llmux COMMAND --help. "
    "The command lines of llmux 0.7.7 work too: llmux --config FILE [--port N] [--verbose]."
)

LEGACY_COMMAND_OPTIONS = {"--validate": "validate", "--checkpoint": "checkpoint", "--restore-detached": "restore"}
HELP_OPTIONS = {"-h", "--help", "-V", "--version"}


class CommandEntry(NamedTuple):
    """What the list of commands shows of one, and the module to import it from."""

    module: str
    name: str
    panel: str
    summary: str
    """The first sentence of the command's own help; a test compares them."""
    ends_with_command: bool = False
    """Whether its arguments end with those of another program, whose options are not for llmux."""


RUN, ENGINE, PLAN, OPERATE = "Run", "Try a model's engine", "Plan with recorded traffic", "Operate a running llmux"

COMMANDS = (
    CommandEntry("demo", "demo", RUN, "Watch three models share one virtual GPU that holds only one of them."),
    CommandEntry("serve", "serve", RUN, "Serve the configured models on one OpenAI-compatible endpoint."),
    CommandEntry(
        "check",
        "check",
        RUN,
        "Check the configuration file and report every problem at once, each with its path and a remedy.",
    ),
    CommandEntry(
        "check", "schema", RUN, "Print the JSON schema of the configuration file, for editors and validators."
    ),
    CommandEntry(
        "doctor",
        "doctor",
        RUN,
        "Check this machine, and what a configuration wants of it, for what usually goes wrong.",
    ),
    CommandEntry(
        "migrate",
        "migrate",
        RUN,
        "Write llmux's configuration from llama-swap's YAML or from the presets of llama.cpp's router (INI).",
    ),
    CommandEntry(
        "validate",
        "validate",
        ENGINE,
        "Start a model's engine, evict and wake it by each eviction in turn, and report which of them work.",
    ),
    CommandEntry(
        "checkpoint",
        "checkpoint",
        ENGINE,
        "Start a model's engine and dump it into an image, from which llmux later restores it instead of a cold start.",
    ),
    CommandEntry(
        "checkpoint",
        "restore",
        ENGINE,
        "Restore a model's engine from its image and leave it running without llmux.",
    ),
    CommandEntry(
        "simulate",
        "simulate",
        PLAN,
        "Simulate policies over recorded traffic, with llmux's real scheduler on virtual time.",
    ),
    CommandEntry(
        "replay",
        "replay",
        PLAN,
        "Send recorded traffic to a running llmux, and report the figures of 'llmux simulate'.",
    ),
    CommandEntry(
        "control",
        "status",
        OPERATE,
        "Show which model is on the GPU, and the state, queue and eviction of every model.",
    ),
    CommandEntry(
        "run",
        "run",
        OPERATE,
        "Run a command with GPU memory that llmux's models make room for, and give it back when the command ends.",
        ends_with_command=True,
    ),
    CommandEntry("control", "switch", OPERATE, "Bring a model onto the GPU and wait until it is there."),
    CommandEntry("control", "pin", OPERATE, "Bring a model onto the GPU and serve no other until it is unpinned."),
    CommandEntry("control", "unpin", OPERATE, "Remove every pin, and let requests switch models again."),
    CommandEntry("control", "mode", OPERATE, "Choose whether requests switch models, or only the operator does."),
    CommandEntry(
        "control", "sleep", OPERATE, "Take a model off the GPU once its requests have ended, and wait for that."
    ),
    CommandEntry(
        "control",
        "wake",
        OPERATE,
        "Bring a model onto the GPU and wait until it is there, without changing the mode or the pin.",
    ),
    CommandEntry(
        "control",
        "eviction",
        OPERATE,
        "Show how models leave the GPU, or change it for one of them until llmux restarts.",
    ),
)

NAME_COLUMNS = max(len(entry.name) for entry in COMMANDS)
"""So that the summaries of all panels begin in one column."""


class LazyGroup(TyperGroup):
    """Lists commands by their entries, and imports a command only when it runs or shows its own help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for panel, entries in groupby(COMMANDS, attrgetter("panel")):
            with formatter.section(panel):
                formatter.write_dl([(f"{entry.name:<{NAME_COLUMNS}}", entry.summary) for entry in entries])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if listed is None or name is None else load_command(name), rest


def load_command(name: str) -> Any:
    """Import a command and make it from its function."""
    entry = next(entry for entry in COMMANDS if entry.name == name)
    function = getattr(import_module(f"llmux.cli.{entry.module}"), entry.name)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    settings = {"allow_interspersed_args": not entry.ends_with_command}
    alone.command(entry.name, help=unwrapped(function.__doc__ or ""), context_settings=settings)(function)
    return typer.main.get_command(alone)


def unwrapped(docstring: str) -> str:
    """A docstring with one line per paragraph: typer keeps line breaks, which are wrong at any other width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(docstring).split("\n\n"))


application = typer.Typer(
    name="llmux",
    cls=LazyGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmux {__version__} ({how_built()})")
        raise typer.Exit


@application.callback(epilog=EPILOG)
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint in front of many models that share the GPUs.

    Clients only change the field 'model'. llmux brings that model onto the GPU and evicts another one for it.
    """


def _listed() -> None:
    """Stands for every command in the list; ``LazyGroup`` replaces it by the command itself."""


for _entry in COMMANDS:
    application.command(_entry.name, help=_entry.summary)(_listed)


def translate(arguments: Sequence[str]) -> list[str]:
    """Turn a command line of 0.7.7, which had options instead of commands, into one of today.

    ``-c F`` becomes ``serve -c F``, and ``-c F --validate M`` becomes ``validate M -c F``. Of options that exclude each
    other (``--validate M --checkpoint N``) the second stays where it is, so that the command refuses it.
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
    """Entry point of the program ``llmux``."""
    open_standard_descriptors()
    arguments = translate(sys.argv[1:])
    if arguments[0] == "serve":
        survive_harmless_signals()
        hasten_imports()
    application(arguments)
