"""The list of commands, lazy imports, and 0.7.7's command lines."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llmux import __version__, how_built
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


def test_the_list_shows_every_command_with_its_whole_summary_under_its_panel() -> None:
    shown = CliRunner().invoke(application, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
    words = " ".join(shown.split())
    panels = list(dict.fromkeys(entry.panel for entry in COMMANDS))
    places = [words.index(f"{panel}:") for panel in panels]
    assert places == sorted(places)
    for entry in COMMANDS:
        begin = words.index(f" {entry.name} {entry.summary}")
        assert sum(place < begin for place in places) == panels.index(entry.panel) + 1


HEAVY = {"aiohttp", "llmux.config", "markdown_it", "msgspec", "prometheus_client", "psutil", "pydantic", "pygments"}
HEAVY |= {"rich", "structlog", "uvloop", "yaml"}
"""Modules that take ten milliseconds or more to import, with what they import themselves."""


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_more_than_they_need(option: str) -> None:
    script = (
        "import atexit, sys\n"
        "from llmux.cli.main import application\n"
        f"atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules))))\n"
        "application(sys.argv[1:])\n"
    )
    result = subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_version_says_which_build_runs() -> None:
    shown = CliRunner().invoke(application, ["--version"]).output
    assert shown == f"llmux {__version__} ({how_built()})\n"
