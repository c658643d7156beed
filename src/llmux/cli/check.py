"""``llmux check``: is the configuration usable, and if not, all that is wrong with it."""

import json as json_text
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmux.config.checks import unsupported
from llmux.config.load import Loaded, load
from llmux.errors import ConfigError, Problem


def check(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="YAML or JSON file.")] = Path(
        "config.json"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check the configuration file and name everything that is wrong with it. Exit code 0: usable; 1: not."""
    try:
        loaded = load(config)
    except ConfigError as error:
        if json:
            typer.echo(json_text.dumps({"file": str(config), "ok": False, "problems": _as_data(error.problems)}))
        else:
            for problem in error.problems:
                typer.echo(f"{config}: {problem}", err=True)
        raise typer.Exit(1) from None
    if json:
        typer.echo(json_text.dumps(_result(config, loaded)))
    else:
        _print_result(config, loaded)


def _result(config: Path, loaded: Loaded) -> dict[str, Any]:
    return {
        "file": str(config),
        "ok": True,
        "models": list(loaded.settings.models),
        "policy": loaded.settings.policy.policy_type,
        "problems": [],
        "warnings": _as_data(loaded.warnings),
        "unsupported": _as_data(unsupported(loaded.settings)),
    }


def _print_result(config: Path, loaded: Loaded) -> None:
    count = len(loaded.settings.models)
    models = "1 model" if count == 1 else f"{count} models"
    typer.echo(f"{config}: OK, {models}, policy {loaded.settings.policy.policy_type}")
    for warning in loaded.warnings:
        typer.echo(f"  warning: {warning}")
    for problem in unsupported(loaded.settings):
        typer.echo(f"  'llmux serve' refuses this for now: {problem}")


def _as_data(problems: Sequence[Problem]) -> list[dict[str, str]]:
    return [asdict(problem) for problem in problems]
