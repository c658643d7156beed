"""``llmux demo``: see llmux at work without a GPU."""

import json as json_text
from typing import Annotated

import typer
from rich.console import Console

from llmux.cli.running import INTERRUPTED, run_server
from llmux.observability.logging import configure_logging
from llmux.simulation.demo.run import Demo, DemoOptions
from llmux.simulation.demo.scenarios import CHATS, FLEET, MIXED
from llmux.simulation.demo.summary import render_summary
from llmux.simulation.demo.view import LiveDisplay, PlainDisplay

SIGNAL_EXIT = 128
"""Plus the signal's number, as shells report it."""

SecondsOption = Annotated[float, typer.Option("--seconds", min=0.5, max=3600, help="How long clients arrive.")]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Of the random traffic; the same seed gives the same requests.")
]
ServeOption = Annotated[
    bool, typer.Option("--serve", help="Without clients: serve until Ctrl-C, and show a request to try by hand.")
]
PortOption = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on; 0: any free one.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the summary as JSON, and everything else to standard error.")
]
MixedOption = Annotated[
    bool,
    typer.Option("--mixed", help="Run engines of three kinds: a chat model, embeddings, images."),
]
GpusOption = Annotated[
    int,
    typer.Option(
        "--gpus",
        min=1,
        max=2,
        help="With 2: five models of different sizes on two virtual GPUs, of which those that fit stay together.",
    ),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show all logs, and the engines' output.")]


def demo(
    seconds: SecondsOption = 20.0,
    seed: SeedOption = 1,
    mixed: MixedOption = False,
    gpus: GpusOption = 1,
    serve: ServeOption = False,
    port: PortOption = 0,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Watch three models share one virtual GPU that holds only one of them. No GPU is needed.

    The real server runs over simulated engines. Clients ask all three models at random, check every answer, and some
    disconnect early; the view shows which model is on the GPU, who waits, and each switch. At the end it sums up. With
    --gpus 2 there are five models on two GPUs: two fit beside each other, and one needs both GPUs.
    Ctrl-C ends it early, with the figures so far.

    Exit codes: 0 all well, and after Ctrl-C with --serve; 1 a request was lost or answered wrongly, the GPU was
    over-committed, or it could not start; 2 wrong usage; 128 and the signal's number if interrupted (Ctrl-C: 130); 70
    internal error.
    """
    if serve and json:
        raise typer.BadParameter("with --serve there is no summary to print: leave one of the two out")
    if mixed and gpus > 1:
        raise typer.BadParameter("--mixed runs on one GPU: leave one of the two out", param_hint="--gpus")
    console = Console(stderr=json)
    scenario = MIXED if mixed else FLEET if gpus > 1 else CHATS
    options = DemoOptions(seconds, seed, with_traffic=not serve, port=port, scenario=scenario)
    live = console.file.isatty() and not console.is_dumb_terminal
    run = Demo(options, LiveDisplay(console) if live else PlainDisplay(console))
    try:
        run_server(_run(run, verbose))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    _conclude(run, serve, json)


async def _run(run: Demo, verbose: bool) -> None:
    with run.display:
        # After the display has begun, so that on a terminal log lines appear above the live view.
        configure_logging("warning", verbose=verbose)
        await run.run()


def _conclude(run: Demo, serve: bool, json: bool) -> None:
    """Print the summary and end with the exit code for it."""
    summary, state = run.summary, run.state
    if summary is None or state is None:
        raise typer.Exit(INTERRUPTED)
    if json:
        typer.echo(json_text.dumps(summary.as_data(), indent=2))
    elif not serve or not summary.is_good:
        console = Console()
        console.print(render_summary(summary, state, console.width), highlight=False)
    if not summary.is_good:
        raise typer.Exit(1)
    if run.interrupted_by is not None and not serve:
        raise typer.Exit(SIGNAL_EXIT + run.interrupted_by)
