"""``llmux schema`` prints the schema as it is kept in the repository."""

import typer
from typer.testing import CliRunner

from llmux.cli.schema import schema
from llmux.config.schema import render


def test_the_schema_is_printed_as_it_is() -> None:
    app = typer.Typer()
    app.command()(schema)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert result.stdout == render()
