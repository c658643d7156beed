"""``llmux simulate``: what a configuration would do with recorded traffic."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Group
from rich.text import Text

from llmux.cli.options import load_settings, size_in_mib
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
from llmux.cli.tuning import LeastMemoryOption, TuneOption, TuneRunsOption, check_tuning, print_tuning
from llmux.config.placement import leaves_sharing_open
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.core.eviction import Drain
from llmux.errors import LlmuxError
from llmux.server.build import decide_sharing, remembered_needs
from llmux.simulation.gpu_tables import gpu_document, render_use
from llmux.simulation.plots import Report, check_plot_file, write_plot
from llmux.simulation.tables import document, render
from llmux.simulation.traffic import TrafficRequest, models_of
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.virtual.leases import PlannedLease
from llmux.simulation.virtual.scenario import Scenario, build_scenario, by_key, not_simulated
from llmux.simulation.virtual.study import DEFAULT_CONTENDERS, EVICT_WHEN_IDLE, Contender, study

DEFAULT_EVICTION = "offload+keep_running"
"""The cheapest switch that every engine can do, for those who give no configuration."""

LEASE = re.compile(r"([^@x]+)(?:x([1-9]\d*))?@([\d.]+)\+([\d.]+)")
"""``20GiBx2@600+300``: size, GPUs, start and seconds."""


def _bytes(text: str) -> int:
    try:
        return size_in_mib(text) << 20
    except ValidationError:
        raise typer.BadParameter(f"{text!r} is not a size, as 2GB") from None


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
        "--policy",
        metavar="NAME",
        help=f"What to simulate: a policy ({', '.join(PolicyType)}), the same with another drain for all models, as "
        f"fifo+freeze or adaptive+wait, or {EVICT_WHEN_IDLE}, which other programs do; repeatable, or separated by "
        f"commas. Without it: {', '.join(map(str, DEFAULT_CONTENDERS))}.",
    ),
]
CostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--costs",
        metavar="[MODEL|EVICTION:]COST",
        help="Seconds that a switch takes: 2, or evict=0.5,wake=1.5,cold=30; repeatable. For an eviction: "
        "offload+keep_running:2. Without it: published measurements for the model's eviction.",
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
RecomputeOption = Annotated[
    float | None,
    typer.Option(
        "--recompute",
        metavar="SHARE",
        min=0,
        max=1,
        help="What the recompute of a frozen request takes, as a share of its prefill: 0.1 where the engine keeps its "
        "KV cache in host memory. Default: by model, as its engine and eviction are known to keep it.",
    ),
]
DiskOption = Annotated[
    int | None,
    typer.Option(
        "--disk-rate",
        metavar="SIZE",
        parser=_bytes,
        help="What the disk gives in a second, as 2GB: simulates prefetch. The costs are then those with all files on "
        "the disk; what can be saved of each is the time to read the model's files, or read=SECONDS of --costs.",
    ),
]
LeaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lease",
        metavar="SIZE[xGPUS]@START+SECONDS",
        help="A program that asks for GPU memory START seconds into the trace and holds it for SECONDS, as llmux run "
        "--gpu-memory has it: 20GiB@600+300, 20GiBx2@600+300 of two GPUs each, all@600+300 a whole GPU; repeatable.",
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
    recompute: RecomputeOption = None,
    disk_rate: DiskOption = None,
    lease: LeaseOption = None,
    json: JsonOption = False,
    plot: PlotOption = None,
    tune: TuneOption = False,
    tune_runs: TuneRunsOption = 200,
    least_memory: LeastMemoryOption = None,
) -> None:
    """Simulate policies over recorded traffic, with llmux's real scheduler on virtual time.

    A TRACE is a CSV file with the columns timestamp, model, prompt_tokens and output_tokens, or with those of the Azure
    or BurstGPT traces, or an access log of llmux. Several traces are played together. No engine is started and no GPU
    is needed: switches take what --costs says, engines prefill and decode at the given speeds. Below the policies
    stands a lower bound, which no policy can beat. How engines are modelled and the bound is computed:
    docs/simulation.md.

    Example: llmux simulate code=azure-code.csv chat=azure-conv.csv -c llmux.yaml --costs 2 --thin 0.4

    With --tune it proposes other settings, and says what each of them would have saved:
    llmux simulate access.log -c llmux.yaml --tune --least-memory chat=9GiB

    Exit codes: 0 done; 1 the trace or the configuration cannot be used; 2 wrong usage; 130 interrupted.
    """
    contenders, speed = chosen_contenders(policy or []), engine_speed(prefill, decode, recompute)
    leases = [planned_lease(text) for text in lease or ()]
    if tune:
        check_tuning(config, contenders if policy else (), plot or ())
    with exit_codes():
        requests = read_requests(traces, selection_of(seed, thin, stretch, skip, seconds, align))
        settings, unknown = (default_settings(requests), []) if config is None else settings_here(config)
        requests = by_key(settings, requests)
        seen = remembered_needs(settings)
        scenario = build_scenario(settings, costs or (), speed, batch_limit, request_timeout, seen, disk_rate)
        scenario = replace(scenario, leases=leases)
        if unknown := [*unknown, *not_simulated(scenario)]:
            typer.echo(f"llmux: not simulated, as nothing says it: {', '.join(unknown)}", err=True)
        if tune:
            chosen = (contenders[0].policy if policy else None) or settings.policy.policy_type
            print_tuning(scenario, requests, chosen, costs or (), least_memory or (), tune_runs, as_json=json)
        else:
            compare(scenario, requests, contenders, traces, seed, plot or (), as_json=json)


def compare(
    scenario: Scenario,
    requests: Sequence[TrafficRequest],
    contenders: Sequence[Contender],
    traces: Sequence[str],
    seed: int,
    plots: Sequence[Path],
    *,
    as_json: bool,
) -> None:
    """Simulate each of them, draw the pictures, and print the figures; raises LlmuxError."""
    for file in plots:
        check_plot_file(file)
    with ProgressBars() as progress:
        found = study(scenario, requests, contenders, progress.begin)
    for file in plots:
        facts = [f"{len(requests)} requests over {requests[-1].at_seconds:.0f} s from {' '.join(traces)}"]
        write_plot(file, Report("llmux simulate", facts, models_of(requests), found))
    if as_json:
        shown = document(traces, len(requests), found.runs, found.bound, seed=seed)
        for run, use in zip(found.runs, found.uses, strict=True):
            shown["policies"][run.name] |= gpu_document(use)
        print_document(shown)
    else:
        on_gpus = render_use([run.name for run in found.runs], found.uses)
        print_report(Group(render(found.runs, found.bound), Text(), on_gpus))


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the program with 1 on an error, and with 130 when it is interrupted."""
    try:
        yield
    except LlmuxError as error:
        typer.echo(f"llmux: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def chosen_contenders(names: Sequence[str]) -> list[Contender]:
    """What has these names, or the usual if there are none; an unknown name ends the program with 2."""
    words = [word for name in names for word in name.split(",") if word]
    try:
        return [Contender.parse(word) for word in dict.fromkeys(words)] or list(DEFAULT_CONTENDERS)
    except ValueError:
        known = ", ".join((*PolicyType, EVICT_WHEN_IDLE))
        drains = ", ".join(f"+{drain}" for drain in Drain)
        raise typer.BadParameter(f"there are {known}, and each with {drains}", param_hint="--policy") from None


def engine_speed(prefill: float, decode: str, recompute: float | None = None) -> EngineSpeed:
    """The speeds of the options; impossible ones end the program with 2."""
    alone, _, full = decode.partition(":")
    try:
        speed = EngineSpeed(prefill, float(alone), float(full or alone), recompute)
    except ValueError:
        raise typer.BadParameter("write tokens a second, as 40 or 40:20", param_hint="--decode") from None
    if not 0 < speed.decode_full <= speed.decode_alone < float("inf"):
        raise typer.BadParameter("both must be above 0, and the second not above the first", param_hint="--decode")
    return speed


def planned_lease(text: str) -> PlannedLease:
    """What ``--lease`` says; what cannot be read ends the program with 2."""
    problem = f"{text!r} is not SIZE@START+SECONDS, as 20GiB@600+300 or 20GiBx2@600+300"
    if (found := LEASE.fullmatch(text)) is None:
        raise typer.BadParameter(problem, param_hint="--lease")
    size, gpus, start, seconds = found.groups()
    try:
        return PlannedLease(float(start), float(seconds), None if size == "all" else size_in_mib(size), int(gpus or 1))
    except ValueError:
        raise typer.BadParameter(problem, param_hint="--lease") from None


def settings_here(config: Path) -> tuple[Settings, list[str]]:
    """The configuration as it would serve on this machine, and what of it cannot be simulated without GPUs here."""
    settings = load_settings(config, starts_engines=False)
    if not leaves_sharing_open(settings):
        return settings, []
    settings = decide_sharing(settings)
    return settings, [] if settings.places_by_memory else ["share_gpus (which GPUs there are: gpus: [{memory: 24GiB}])"]


def default_settings(requests: Sequence[TrafficRequest]) -> Settings:
    """The configuration if none is given: the trace's models, one at a time on the GPU."""
    return Settings.model_validate(
        {"models": {name: {"model_path": name, "eviction": DEFAULT_EVICTION} for name in models_of(requests)}}
    )
