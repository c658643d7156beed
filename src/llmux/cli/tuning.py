"""``llmux simulate --tune``: its options, and what it prints."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from llmux.cli.options import size_in_mib
from llmux.cli.progress import ProgressBars
from llmux.cli.traces import print_document, print_report
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings
from llmux.simulation.traffic import TrafficRequest
from llmux.simulation.tuning.changes import least_of_weights
from llmux.simulation.tuning.report import document, render
from llmux.simulation.tuning.search import tune
from llmux.simulation.virtual.scenario import Scenario, costs_of
from llmux.simulation.virtual.study import Contender

TuneOption = Annotated[
    bool,
    typer.Option(
        "--tune",
        help="Look for gpu_memory, evictions and idle times with which the trace would have waited less: chosen by its "
        "first half, judged by its second. Needs -c; simulates the configuration's policy, or one given by --policy.",
    ),
]
TuneRunsOption = Annotated[
    int, typer.Option("--tune-runs", min=1, metavar="N", help="Simulate the first half at most this often.")
]
LeastMemoryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--least-memory",
        metavar="MODEL=SIZE",
        help="With --tune: the least gpu_memory that a model works with, as chat=9GiB; repeatable. Without it: "
        "estimated for models whose weights are local files; others keep what they have.",
    ),
]


def check_tuning(config: Path | None, contenders: Sequence[Contender], plots: Sequence[Path]) -> None:
    """Options that ``--tune`` needs or cannot use end the program with 2."""
    is_policy = all(one.policy is not None and one.drain is None for one in contenders)
    if config is None or plots or len(contenders) > 1 or not is_policy:
        problem = "it needs -c, takes one --policy at most (with the drain of -c), and draws no --plot"
        raise typer.BadParameter(problem, param_hint="--tune")


def print_tuning(
    scenario: Scenario,
    requests: Sequence[TrafficRequest],
    policy: PolicyType,
    costs: Sequence[str],
    least_memory: Sequence[str],
    runs_max: int,
    *,
    as_json: bool,
) -> None:
    """Search, and print what was found, as tables or as one JSON object; raises LlmuxError."""
    settings = scenario.settings
    least_mib = least_of_weights(settings) | least_memories(settings, least_memory)
    with ProgressBars() as progress:
        tuning = tune(
            settings,
            lambda changed: replace(
                scenario, settings=changed, costs=costs_of(changed, costs, scenario.disk_bytes_per_second)
            ),
            requests,
            policy,
            least_mib,
            runs_max,
            progress.begin("tuning", runs_max),
        )
    if as_json:
        print_document({"requests": len(requests), "policy": policy.value, **document(tuning)})
    else:
        print_report(render(tuning, settings))


def least_memories(settings: Settings, texts: Sequence[str]) -> dict[str, int]:
    """By model, the sizes of ``MODEL=SIZE`` in MiB; a wrong one ends the program with 2."""
    found = {}
    for text in texts:
        name, _, written = text.rpartition("=")
        try:
            mib = size_in_mib(written)
        except ValidationError:
            raise typer.BadParameter(f"{text!r} is not MODEL=SIZE, as chat=9GiB", param_hint="--least-memory") from None
        if name not in settings.models:
            message = f"the model '{name}' is not configured; there are {', '.join(settings.models)}"
            raise typer.BadParameter(message, param_hint="--least-memory")
        found[name] = mib
    return found
