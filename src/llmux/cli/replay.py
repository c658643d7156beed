"""``llmux replay``: recorded traffic against a running llmux."""

import asyncio
import resource
from typing import Annotated

import typer

from llmux.cli.options import DEFAULT_URL, UrlOption
from llmux.cli.progress import ProgressBars
from llmux.cli.running import INTERRUPTED
from llmux.cli.traces import (
    AlignOption,
    JsonOption,
    SecondsOption,
    SeedOption,
    SkipOption,
    StretchOption,
    ThinOption,
    TraceArgument,
    print_document,
    print_report,
    read_requests,
    selection_of,
)
from llmux.errors import LlmuxError
from llmux.simulation.replay import Replayed
from llmux.simulation.replay import replay as replay_trace
from llmux.simulation.tables import document, render

NAME = "replay"
"""Of the row in the report, in place of a policy's."""
LATE_SECONDS = 0.1
"""Requests later than this distort the waits that are reported."""
PROBLEMS_SHOWN = 5

SpeedOption = Annotated[
    float,
    typer.Option("--speed", min=1e-3, help="Divide the arrival times by this; the engines' speed stays what it is."),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="LLMUX_API_KEY", metavar="KEY", help="One of llmux's api_keys, if it has any."),
]


def replay(
    traces: TraceArgument,
    url: UrlOption = DEFAULT_URL,
    speed: SpeedOption = 1.0,
    api_key: KeyOption = None,
    seed: SeedOption = 1,
    thin: ThinOption = 1.0,
    stretch: StretchOption = 1.0,
    skip: SkipOption = 0.0,
    seconds: SecondsOption = None,
    align: AlignOption = False,
    json: JsonOption = False,
) -> None:
    """Send recorded traffic to a running llmux, and report the figures of 'llmux simulate'.

    Each request is sent at its recorded time, however the earlier ones fare, as a streamed completion with about as
    many tokens of prompt and answer as recorded. The same options select the same requests as in 'llmux simulate', so
    that the two reports can be compared.

    Example: llmux replay code=azure-code.csv chat=azure-conv.csv --thin 0.4 --seconds 300

    Exit codes: 0 all were served; 1 some were not, or there is no llmux; 2 wrong usage; 130 interrupted, with the
    figures so far.
    """
    try:
        requests = read_requests(traces, selection_of(seed, thin, stretch, skip, seconds, align))
        _raise_open_files()
        with ProgressBars() as progress:
            report_sent = progress.begin("sent", len(requests))
            replayed = asyncio.run(replay_trace(url, requests, speed=speed, api_key=api_key, progress=report_sent))
    except LlmuxError as error:
        typer.echo(f"llmux: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    figures = replayed.figures(NAME)
    if json:
        late, costs = round(replayed.late_seconds, 6), replayed.switches.mean_costs
        more = {"seed": seed, "speed": speed, "late_seconds": late, "costs": costs}
        print_document(document(traces, len(replayed.outcomes), [figures], None, **more))
    else:
        print_report(render([figures], None))
        if costs := replayed.switches.mean_costs:
            typer.echo(f"Switches took on average what 'llmux simulate --costs {costs}' assumes.")
    _conclude(replayed)


def _conclude(replayed: Replayed) -> None:
    """Print what went wrong and end with the exit code for it."""
    if replayed.late_seconds > LATE_SECONDS:
        typer.echo(
            f"llmux: some requests were sent up to {replayed.late_seconds:.1f} s late: this machine is too busy to "
            "send the trace at its speed",
            err=True,
        )
    problems = replayed.problems()
    for problem, count in problems[:PROBLEMS_SHOWN]:
        typer.echo(f"llmux: {count} not served: {problem}", err=True)
    if replayed.interrupted:
        raise typer.Exit(INTERRUPTED)
    if problems:
        raise typer.Exit(1)


def _raise_open_files() -> None:
    """Each open request is an open file, and the soft limit is often 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
