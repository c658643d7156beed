"""``llmux simulate``: what a configuration would do with recorded traffic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmux.cli.options import load_settings
from llmux.cli.progress import ProgressBars
from llmux.cli.traces import (
    INTERRUPTED,
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
    read_calls,
    selection_of,
)
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.errors import LlmuxError
from llmux.simulation.report.document import document
from llmux.simulation.report.files import check_plot_file, write_plot
from llmux.simulation.report.picture import curves, gantt
from llmux.simulation.report.table import render
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import Study, build_scenario, check_models, study
from llmux.simulation.workload.call import TracedCall
from llmux.simulation.workload.selection import models_of

DEFAULT_EVICTION = "offload+keep_running"

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Configuration; without: the trace's models and defaults."),
]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option("--policy", metavar="NAME", help="Policy to try; repeatable, or with commas. Without: all."),
]
CostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--costs",
        metavar="[MODEL:]COST",
        help="Seconds of a switch: 2, or evict=0.5,wake=1.5,cold=30; repeatable. Without: by the model's eviction.",
    ),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch-limit", min=1, help="Requests per engine, over the models' max_in_flight.")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--request-timeout", min=0, help="Seconds, over request_timeout_seconds; 0: patient clients."),
]
PrefillOption = Annotated[float, typer.Option("--prefill", min=1e-3, help="Tokens a second of reading prompts.")]
DecodeOption = Annotated[
    str, typer.Option("--decode", metavar="ALONE[:FULL]", help="Tokens a second per answer, alone and in a full batch.")
]
PlotOption = Annotated[
    list[Path] | None,
    typer.Option("--plot", metavar="FILE", help="Draw the runs into FILE.html or FILE.png; repeatable."),
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
    """Try policies on recorded traffic, in virtual time, with the scheduler that serves.

    A TRACE is a CSV file with the columns timestamp, model, prompt_tokens and output_tokens, or those of Azure or
    BurstGPT, or it is llmux's access log. Several are played together. No engine is started: docs/simulation.md says
    how engines are modelled, and what the lower bound means that stands below the policies.

    Example: llmux simulate code=azure-code.csv chat=azure-conv.csv -c llmux.yaml --costs 2 --thin 0.4

    Exit codes: 0 done; 1 the trace or the configuration cannot be used; 2 wrong usage; 130 interrupted.
    """
    policies = chosen_policies(policy or [])
    speed = engine_speed(prefill, decode)
    try:
        for file in plot or ():
            check_plot_file(file)
        calls = read_calls(traces, selection_of(seed, thin, stretch, skip, seconds, align))
        settings = load_settings(config, None, None) if config is not None else default_settings(calls)
        check_models(settings, calls)
        scenario = build_scenario(
            settings, costs or (), speed, batch_limit=batch_limit, request_timeout_seconds=request_timeout
        )
        with ProgressBars() as progress:
            found = study(scenario, calls, policies, progress.begin)
        for file in plot or ():
            _draw(file, traces, calls, found)
    except LlmuxError as error:
        typer.echo(f"llmux: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print_document(document(traces, len(calls), found.runs, found.bound, seed=seed))
    else:
        print_report(render(found.runs, found.bound))


def chosen_policies(names: Sequence[str]) -> list[PolicyType]:
    """The policies that were asked for, or all; ends the program with 2 where there is no such."""
    words = [word for name in names for word in name.split(",") if word]
    try:
        return [PolicyType(word) for word in dict.fromkeys(words)] or list(PolicyType)
    except ValueError:
        known = ", ".join(PolicyType)
        raise typer.BadParameter(f"there are {known}", param_hint="--policy") from None


def engine_speed(prefill: float, decode: str) -> EngineSpeed:
    """The engine that was asked for; ends the program with 2 where it cannot be."""
    alone, _, full = decode.partition(":")
    try:
        speed = EngineSpeed(prefill, float(alone), float(full or alone))
    except ValueError:
        raise typer.BadParameter("write tokens a second, as 40 or 40:20", param_hint="--decode") from None
    if not 0 < speed.decode_full <= speed.decode_alone < float("inf"):
        raise typer.BadParameter("both must be above 0, and the second not above the first", param_hint="--decode")
    return speed


def default_settings(calls: Sequence[TracedCall]) -> Settings:
    """A configuration for those who give none: the trace's models, one at a time on the GPU."""
    return Settings.model_validate(
        {"models": {name: {"model_path": name, "eviction": DEFAULT_EVICTION} for name in models_of(calls)}}
    )


def _draw(file: Path, traces: Sequence[str], calls: Sequence[TracedCall], found: Study) -> None:
    models = models_of(calls)
    pictures = [gantt(found.plotted, models), curves(found.plotted, models, found.bound.durations)]
    facts = [f"{len(calls)} requests over {calls[-1].at_seconds:.0f} s from {' '.join(traces)}"]
    write_plot(file, "llmux simulate", facts, found.runs, found.bound, pictures)
