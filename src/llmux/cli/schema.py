"""``llmux schema``: the JSON schema of the configuration."""

import typer

from llmux.config.schema import render


def schema() -> None:
    """Print the JSON schema of the configuration file, for editors and validators."""
    typer.echo(render(), nl=False)
