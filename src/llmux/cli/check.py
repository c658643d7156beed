"""``llmux check`` and ``llmux schema``: the commands about the configuration file alone."""

import json as json_text
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmux.cli.options import ConfigOption
from llmux.config import checks, machine
from llmux.config.draining import drained
from llmux.config.load import load
from llmux.config.schema import render
from llmux.config.settings import Settings
from llmux.errors import ConfigError, Problem
from llmux.server.images import object_store_problems


def check(
    config: ConfigOption = Path("config.json"),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
) -> None:
    """Check the configuration file and report every problem at once, each with its path and a remedy.

    Files of llmux 0.7.7 are read as they are. Warnings, such as a program that is missing on this machine, and what
    'llmux serve' does not support yet, are listed but make the check fail only with --strict. Advice on what would make
    switches cheaper never does. Nothing is started.

    Example: llmux check -c llmux.yaml

    Exit codes: 0 the file can be used; 1 it cannot, or with --strict, there are warnings.
    """
    try:
        loaded = load(config)
    except ConfigError as error:
        if json:
            typer.echo(json_text.dumps({"file": str(config), "ok": False, "problems": _as_data(error.problems)}))
        else:
            for problem in error.problems:
                typer.echo(f"{config}: {problem}", err=True)
        raise typer.Exit(1) from None
    warnings = (*loaded.warnings, *machine.warnings(loaded.settings), *object_store_problems(loaded.settings))
    advice = (*checks.advice(loaded.settings), *(each.advice for each in drained(loaded.settings)))
    is_ok = not (strict and warnings)
    if json:
        typer.echo(json_text.dumps(_result(config, loaded.settings, warnings, advice, is_ok=is_ok)))
    else:
        _print_result(config, loaded.settings, warnings, advice, is_ok=is_ok)
    if not is_ok:
        raise typer.Exit(1)


def schema() -> None:
    """Print the JSON schema of the configuration file, for editors and validators.

    Example: llmux schema > config.schema.json. Many editors use it for a YAML file whose first line is
    '# yaml-language-server: $schema=config.schema.json'.
    """
    typer.echo(render(), nl=False)


def _result(
    config: Path, settings: Settings, warnings: Sequence[Problem], advice: Sequence[Problem], *, is_ok: bool
) -> dict[str, Any]:
    return {
        "file": str(config),
        "ok": is_ok,
        "models": list(settings.models),
        "policy": settings.policy.policy_type,
        "problems": [],
        "warnings": _as_data(warnings),
        "advice": _as_data(advice),
    }


def _print_result(
    config: Path, settings: Settings, warnings: Sequence[Problem], advice: Sequence[Problem], *, is_ok: bool
) -> None:
    count = len(settings.models)
    models = "1 model" if count == 1 else f"{count} models"
    verdict = "OK" if is_ok else "not OK with --strict"
    typer.echo(f"{config}: {verdict}, {models}, policy {settings.policy.policy_type}")
    for warning in warnings:
        typer.echo(f"  warning: {warning}")
    for each in advice:
        typer.echo(f"  advice: {each}")


def _as_data(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [asdict(problem) for problem in problems]
