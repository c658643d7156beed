"""What the commands that take a trace have in common: its options, and how a report is shown."""

import json as json_text
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from llmux.simulation.workload.call import TracedCall
from llmux.simulation.workload.reading import read_trace
from llmux.simulation.workload.selection import Selection, merge, select

INTERRUPTED = 130
REPORT_CELLS = 120

TraceArgument = Annotated[
    list[str], typer.Argument(metavar="TRACE...", help="FILE, or NAME=FILE where the file has no column of models.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="For --thin and --stretch: another number, other requests.")]
ThinOption = Annotated[float, typer.Option("--thin", min=0, max=1, help="Share of the requests that is kept.")]
StretchOption = Annotated[float, typer.Option("--stretch", min=0, help="Make answers so many times as long.")]
SkipOption = Annotated[float, typer.Option("--skip", min=0, metavar="SECONDS", help="Leave out the beginning.")]
SecondsOption = Annotated[float | None, typer.Option("--seconds", min=0, help="Take only so much of the trace.")]
AlignOption = Annotated[bool, typer.Option("--align", help="Let each file begin with its own first request.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def selection_of(seed: int, thin: float, stretch: float, skip: float, seconds: float | None, align: bool) -> Selection:
    """What to take of the trace, from a command's options."""
    return Selection(skip, float("inf") if seconds is None else seconds, thin, stretch, seed, align)


def read_calls(traces: Sequence[str], selection: Selection) -> list[TracedCall]:
    """The chosen calls of some traces; raises ``TraceError``."""
    return select(merge([read_trace(trace) for trace in traces], align=selection.align), selection)


def print_report(report: RenderableType) -> None:
    """Print tables; into files and pipes at their full width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=REPORT_CELLS)
    console.print(report, highlight=False)


def print_document(document: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(json_text.dumps(document, indent=2))
