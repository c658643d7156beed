"""The command line of 0.7.7, which had options where llmux has commands."""

from collections.abc import Sequence

COMMAND_OPTIONS = {"--validate": "validate", "--checkpoint": "checkpoint", "--restore-detached": "restore"}
HELP_OPTIONS = {"-h", "--help", "-V", "--version"}


def translate(arguments: Sequence[str]) -> list[str]:
    """A command line without a command becomes one with: ``-c F`` serves, ``--validate M`` validates.

    An option of 0.7.7 that excludes another one is left where it is, so that the command refuses it.
    """
    if not arguments:
        return ["serve"]
    first = arguments[0]
    if not first.startswith("-") or first in HELP_OPTIONS:
        return ["--help" if argument == "-h" else argument for argument in arguments]
    given = list(arguments)
    for option, command in COMMAND_OPTIONS.items():
        for position, argument in enumerate(given):
            if argument == option:
                return [command, *given[position + 1 : position + 2], *given[:position], *given[position + 2 :]]
            if argument.startswith(f"{option}="):
                return [command, argument.partition("=")[2], *given[:position], *given[position + 1 :]]
    return ["serve", *given]
