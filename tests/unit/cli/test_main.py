"""The list of commands, lazy imports, and 0.7.7's command lines."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llmux.cli.main import COMMANDS, CommandEntry, application, load_command, translate


@pytest.mark.parametrize(
    ("given", "translated"),
    [
        ([], ["serve"]),
        (["--config", "f.json"], ["serve", "--config", "f.json"]),
        (["-c", "f", "-p", "9", "-v"], ["serve", "-c", "f", "-p", "9", "-v"]),
        (["-h"], ["--help"]),
        (["--version"], ["--version"]),
        (["check", "-c", "f"], ["check", "-c", "f"]),
        (["serve", "-h"], ["serve", "--help"]),
        (
            ["-c", "f", "--validate", "m", "--policies", "offload+stop"],
            ["validate", "m", "-c", "f", "--policies", "offload+stop"],
        ),
        (["--validate=m", "-c", "f"], ["validate", "m", "-c", "f"]),
        (["--checkpoint", "m", "--no-warmup"], ["checkpoint", "m", "--no-warmup"]),
        (["--restore-detached", "m"], ["restore", "m"]),
    ],
)
def test_the_command_line_of_077(given: list[str], translated: list[str]) -> None:
    assert translate(given) == translated


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_the_list_shows_the_first_sentence_of_each_commands_own_help(entry: CommandEntry) -> None:
    own = re.sub(r"\s+", " ", load_command(entry.name).help.strip())
    assert own.startswith(entry.summary)
    assert entry.summary.endswith(".")


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_each_command_shows_its_own_options(entry: CommandEntry) -> None:
    shown = CliRunner().invoke(application, [entry.name, "--help"])
    assert shown.exit_code == 0
    assert f"llmux {entry.name}" in shown.output
    assert entry.summary.split(" ")[0] in shown.output


def test_help_and_version_import_no_more_than_they_need() -> None:
    script = (
        "import sys\n"
        "from llmux.cli.main import application\n"
        "application(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'aiohttp', 'pydantic', 'structlog', 'prometheus_client', 'uvloop'} & set(sys.modules)))\n"
    )
    for arguments in (["--help"], ["--version"]):
        result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "[]"
