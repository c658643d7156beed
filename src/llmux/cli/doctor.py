"""``llmux doctor``: what usually goes wrong, checked before it does."""

import json as json_text
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llmux.config import machine
from llmux.config.load import load
from llmux.diagnosis.examination import Examination, examine
from llmux.diagnosis.findings import Level
from llmux.errors import ConfigError
from llmux.server.images import object_store_problems

STYLES = {Level.OK: "green", Level.UNKNOWN: "dim", Level.WARNING: "yellow", Level.ERROR: "bold red"}
OptionalConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="The configuration file. Without one, only the machine is checked."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]


def doctor(config: OptionalConfigOption = None, json: JsonOption = False) -> None:
    """Check this machine, and what a configuration wants of it, for what usually goes wrong.

    Kernel, limits, memory, GPUs and their driver, criu, programs and versions of the engines, weights, ports and
    directories. Each line is ok, unknown (it cannot be checked here), warning or error, the last two with what to do
    about it. No engine is started, and no GPU memory taken.

    Example: llmux doctor -c llmux.yaml

    Exit codes: 0 no error was found; 1 an error was found; 2 wrong usage.
    """
    examination = _examine(config)
    if json:
        typer.echo(json_text.dumps(document(examination), indent=2))
    else:
        _print(examination)
    if examination.count(Level.ERROR):
        raise typer.Exit(1)


def _examine(config: Path | None) -> Examination:
    if config is None:
        return examine(None)
    try:
        loaded = load(config)
    except ConfigError as failure:
        return examine(None, failure.problems)
    settings = loaded.settings
    # What may be there later is a mere warning for ``check``; now it would fail.
    return examine(settings, chain(machine.warnings(settings), object_store_problems(settings)), loaded.warnings)


def document(examination: Examination) -> dict[str, Any]:
    """The findings as JSON: ``ok``, and for each topic its findings with level, what, found and remedy."""
    return {
        "ok": not examination.count(Level.ERROR),
        "topics": [
            {
                "topic": topic.name,
                "findings": [
                    {"level": one.level.value, "what": one.what, "found": one.found, "remedy": one.remedy}
                    for one in topic.findings
                ],
            }
            for topic in examination.topics
        ],
    }


def _print(examination: Examination) -> None:
    console = Console(highlight=False, soft_wrap=False)
    for topic in examination.topics:
        console.print(Text(topic.name, style="bold"))
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in topic.findings:
            text = Text(f"{finding.what}: {finding.found}")
            if finding.remedy and finding.level is not Level.OK:
                text.append(f"\n→ {finding.remedy}", style="cyan")
            table.add_row(Text(finding.level.value, style=STYLES[finding.level]), text)
        console.print(Padding(table, (0, 0, 0, 2)))
    counts = {level: examination.count(level) for level in (Level.ERROR, Level.WARNING)}
    words = [f"{count} {level.value}{'s' if count != 1 else ''}" for level, count in counts.items() if count]
    console.print(Text(", ".join(words) if words else "Nothing is wrong as far as can be seen."))
