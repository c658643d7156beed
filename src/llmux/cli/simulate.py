"""``llmux simulate``: what a configuration would do with recorded traffic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmux.cli.options import load_settings
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
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.errors import LlmuxError
from llmux.simulation.plots import Report, check_plot_file, write_plot
from llmux.simulation.tables import document, render
from llmux.simulation.traffic import TrafficRequest, models_of
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import build_scenario, by_key, study

DEFAULT_EVICTION = "offload+keep_running"
"""The cheapest switch that every engine can do, for those who give no configuration."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="llmux's configuration. Without it: the trace's models, one at a time on the GPU, with llmux's defaults.",
    ),
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy", metavar="NAME", help="Policy to simulate; repeatable, or separated by commas. Without it: all."
    ),
]
CostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--costs",
        metavar="[MODEL:]COST",
        help="Seconds that a switch takes: 2, or evict=0.5,wake=1.5,cold=30; repeatable. Without it: published "
        "measurements for the model's eviction.",
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch-limit", min=1, help="Requests in an engine's batch, in place of the models' max_in_flight."),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--request-timeout", min=0, help="In place of request_timeout_seconds; 0: requests wait for ever."),
]
PrefillOption = Annotated[float, typer.Option("--prefill", min=1e-3, help="Tokens per second of prefill.")]
DecodeOption = Annotated[
    str,
    typer.Option(
        "--decode",
        metavar="ALONE[:FULL]",
        help="Tokens per second of decoding each answer, alone and in a full batch.",
    ),
]
PlotOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Draw which model was on the GPU when, and times to first token, into FILE.html (with all tables), "
        "FILE.svg or FILE.png; repeatable. Needs the extra 'plot'.",
    ),
]


def simulate(
    traces: TraceArgument,
    config: ConfigOption = None,
    policy: PolicyOption = None,
    costs: CostsOption = None,
    seed: SeedOption = 1,
    thin: ThinOption = 1.0,
    stretch: StretchOption = 1.0,
    skip: SkipOption = 0.0,
    seconds: SecondsOption = None,
    align: AlignOption = False,
    batch_limit: BatchOption = None,
    request_timeout: TimeoutOption = None,
    prefill: PrefillOption = 8000.0,
    decode: DecodeOption = "40:20",
    json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Simulate policies over recorded traffic, with llmux's real scheduler on virtual time.

    A TRACE is a CSV file with the columns timestamp, model, prompt_tokens and output_tokens, or with those of the Azure
    or BurstGPT traces, or an access log of llmux. Several traces are played together. No engine is started and no GPU
    is needed: switches take what --costs says, engines prefill and decode at the given speeds. Below the policies
    stands a lower bound, which no policy can beat. How engines are modelled and the bound is computed:
    docs/simulation.md.

    Example: llmux simulate code=azure-code.csv chat=azure-conv.csv -c llmux.yaml --costs 2 --thin 0.4

    Exit codes: 0 done; 1 the trace or the configuration cannot be used; 2 wrong usage; 130 interrupted.
    """
    policies = chosen_policies(policy or [])
    speed = engine_speed(prefill, decode)
    try:
        for file in plot or ():
            check_plot_file(file)
        requests = read_requests(traces, selection_of(seed, thin, stretch, skip, seconds, align))
        settings = load_settings(config, starts_engines=False) if config is not None else default_settings(requests)
        requests = by_key(settings, requests)
        scenario = build_scenario(
            settings, costs or (), speed, batch_limit=batch_limit, request_timeout_seconds=request_timeout
        )
        with ProgressBars() as progress:
            found = study(scenario, requests, policies, progress.begin)
        for file in plot or ():
            facts = [f"{len(requests)} requests over {requests[-1].at_seconds:.0f} s from {' '.join(traces)}"]
            write_plot(file, Report("llmux simulate", facts, models_of(requests), found))
    except LlmuxError as error:
        typer.echo(f"llmux: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print_document(document(traces, len(requests), found.runs, found.bound, seed=seed))
    else:
        print_report(render(found.runs, found.bound))


def chosen_policies(names: Sequence[str]) -> list[PolicyType]:
    """The policies with these names, or all if there are none; an unknown name ends the program with 2."""
    words = [word for name in names for word in name.split(",") if word]
    try:
        return [PolicyType(word) for word in dict.fromkeys(words)] or list(PolicyType)
    except ValueError:
        known = ", ".join(PolicyType)
        raise typer.BadParameter(f"there are {known}", param_hint="--policy") from None


def engine_speed(prefill: float, decode: str) -> EngineSpeed:
    """The speeds of the options; impossible ones end the program with 2."""
    alone, _, full = decode.partition(":")
    try:
        speed = EngineSpeed(prefill, float(alone), float(full or alone))
    except ValueError:
        raise typer.BadParameter("write tokens a second, as 40 or 40:20", param_hint="--decode") from None
    if not 0 < speed.decode_full <= speed.decode_alone < float("inf"):
        raise typer.BadParameter("both must be above 0, and the second not above the first", param_hint="--decode")
    return speed


def default_settings(requests: Sequence[TrafficRequest]) -> Settings:
    """The configuration if none is given: the trace's models, one at a time on the GPU."""
    return Settings.model_validate(
        {"models": {name: {"model_path": name, "eviction": DEFAULT_EVICTION} for name in models_of(requests)}}
    )
