"""What the commands that take traces have in common: options, and printing of reports."""

import json as json_text
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from llmux.simulation.traces import read_trace
from llmux.simulation.traffic import Selection, TrafficRequest, merge, select

REPORT_CELLS = 120
"""Width of tables in files and pipes; the widest row fits."""

TraceArgument = Annotated[
    list[str],
    typer.Argument(metavar="TRACE...", help="FILE, or NAME=FILE for a file whose requests are all for the model NAME."),
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed", help="Of the random choices of --thin and --stretch; the same seed chooses the same requests."
    ),
]
ThinOption = Annotated[float, typer.Option("--thin", min=0, max=1, help="Probability that a request is kept.")]
StretchOption = Annotated[float, typer.Option("--stretch", min=0, help="Multiply the output tokens of all requests.")]
SkipOption = Annotated[
    float, typer.Option("--skip", min=0, metavar="SECONDS", help="Leave out this much of the beginning.")
]
SecondsOption = Annotated[float | None, typer.Option("--seconds", min=0, help="Take only this much of the trace.")]
AlignOption = Annotated[bool, typer.Option("--align", help="Start all files together, each with its first request.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def selection_of(seed: int, thin: float, stretch: float, skip: float, seconds: float | None, align: bool) -> Selection:
    """The selection of a command's options."""
    return Selection(skip, float("inf") if seconds is None else seconds, thin, stretch, seed, align)


def read_requests(traces: Sequence[str], selection: Selection) -> list[TrafficRequest]:
    """The selected requests of some traces; raises ``TraceError``."""
    return select(merge([read_trace(trace) for trace in traces], align=selection.align), selection)


def print_report(report: RenderableType) -> None:
    """Print tables; in files and pipes at their full width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=REPORT_CELLS)
    console.print(report, highlight=False)


def print_document(document: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(json_text.dumps(document, indent=2))
