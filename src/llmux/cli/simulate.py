"""``llmux simulate``: what a configuration would do with recorded traffic."""

import json as json_text
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from llmux.cli.serve import load_settings
from llmux.cli.steps import Steps
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.errors import LlmuxError
from llmux.simulation.report.document import document
from llmux.simulation.report.table import render
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.scenario import bound_of, build_scenario, check_models, simulate, summarise
from llmux.simulation.workload.call import TracedCall
from llmux.simulation.workload.reading import read_trace
from llmux.simulation.workload.selection import Selection, merge, models_of, select

REPORT_CELLS = 120
INTERRUPTED = 130

TraceArgument = Annotated[
    list[str], typer.Argument(metavar="TRACE...", help="FILE, or NAME=FILE where the file has no column of models.")
]
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
SeedOption = Annotated[int, typer.Option("--seed", help="For --thin and --stretch: another number, other requests.")]
ThinOption = Annotated[float, typer.Option("--thin", min=0, max=1, help="Share of the requests that is kept.")]
StretchOption = Annotated[float, typer.Option("--stretch", min=0, help="Make answers so many times as long.")]
SkipOption = Annotated[float, typer.Option("--skip", min=0, metavar="SECONDS", help="Leave out the beginning.")]
SecondsOption = Annotated[float | None, typer.Option("--seconds", min=0, help="Take only so much of the trace.")]
AlignOption = Annotated[bool, typer.Option("--align", help="Let each file begin with its own first request.")]
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def simulate_command(
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
    selection = Selection(skip, float("inf") if seconds is None else seconds, thin, stretch, seed, align)
    try:
        calls = read_calls(traces, selection)
        settings = load_settings(config, None, None) if config is not None else default_settings(calls)
        check_models(settings, calls)
        scenario = build_scenario(
            settings, costs or (), speed, batch_limit=batch_limit, request_timeout_seconds=request_timeout
        )
        with Steps() as steps:
            runs = [
                summarise(name.value, calls, simulate(scenario, calls, name, steps.begin(name.value, len(calls))))
                for name in policies
            ]
            steps.begin("lower bound", None)
            bound = bound_of(scenario, calls)
    except LlmuxError as error:
        typer.echo(f"llmux: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if json:
        typer.echo(json_text.dumps(document(traces, len(calls), runs, bound, seed=seed), indent=2))
    else:
        print_report(render(runs, bound))


def print_report(report: RenderableType) -> None:
    """Print tables; into files and pipes at their full width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=REPORT_CELLS)
    console.print(report, highlight=False)


def read_calls(traces: Sequence[str], selection: Selection) -> list[TracedCall]:
    """The chosen calls of some traces; raises ``TraceError``."""
    return select(merge([read_trace(trace) for trace in traces], align=selection.align), selection)


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
    eviction = Eviction.parse("offload+keep_running")
    return Settings.model_validate(
        {"models": {name: {"model_path": name, "eviction": str(eviction)} for name in models_of(calls)}}
    )
