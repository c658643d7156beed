"""``llmux validate``: does a model say the same after each way of leaving the GPU, and is its memory really free?"""

import json as json_text
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmux.cli.control import eviction_of
from llmux.cli.engine_work import (
    ConfigOption,
    JsonOption,
    ModelArgument,
    PortOption,
    VerboseOption,
    run_to_end,
    tell,
    without_canary_off,
)
from llmux.cli.serve import load_settings
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process
from llmux.engines.checkpoint_store import CheckpointStore
from llmux.server.build import build_checkpointer
from llmux.tools.standalone import Memory, open_standalone
from llmux.tools.validation import Trial, Validation
from llmux.tools.validation import validate as validate_engine

DEFAULT_POLICIES = "offload+keep_running,discard+keep_running"
PIPE_WIDTH = 1000
TITLES = ("Policy", "Sleep (s)", "Wake (s)", "GPU Before", "GPU After", "GPU Wake (MiB)")
HOST_TITLES = ("Host Before", "Host After", "Host Wake (MiB)")
VERDICT_TITLES = ("Response", "Pass")

PoliciesOption = Annotated[
    str, typer.Option("--policies", metavar="W+P,W+P", help="The ways of leaving the GPU that are tried, in order.")
]


def validate(
    model: ModelArgument,
    config: ConfigOption = Path("config.json"),
    policies: PoliciesOption = DEFAULT_POLICIES,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    port: PortOption = None,
) -> None:
    """Start a model alone, put it to sleep and wake it by each policy, and judge what became of it.

    A policy passes if the model then gives the same answer, its memory was freed in between (the GPUs', or the host's
    where no GPU can be read), and its processes were gone if they should be. Stop llmux first: the engine needs the
    GPU. Exit codes: 0 all passed; 1 some failed, or the model could not be started; 2 wrong usage; 130 interrupted.
    """
    evictions = [eviction_of(word.strip()) for word in policies.split(",") if word.strip()]
    if not evictions:
        raise typer.BadParameter("no policy to try")
    settings = without_canary_off(load_settings(config, None, None))
    result = run_to_end(_validate(settings, model, evictions), verbose=verbose)
    if json:
        typer.echo(json_text.dumps(document(result), indent=2))
    else:
        _print_report(result)
    if not result.passed:
        raise typer.Exit(1)


async def _validate(settings: Settings, model: str, evictions: Sequence[Eviction]) -> Validation:
    with _images_of_its_own(settings, model, evictions) as images:
        async with open_standalone(settings, model, images=images) as engine:
            return await validate_engine(engine, evictions, tell)


@contextmanager
def _images_of_its_own(
    settings: Settings, model: str, evictions: Sequence[Eviction]
) -> Iterator[CheckpointStore | None]:
    """A place for images beside those that serve, which are neither used nor replaced."""
    checkpoint = settings.checkpoint
    if checkpoint is None or not any(eviction.process is Process.CHECKPOINT for eviction in evictions):
        yield None
        return
    checkpoint.images_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=".validate-", dir=checkpoint.images_dir))
    imager = build_checkpointer(settings, directory)
    assert imager is not None
    try:
        yield CheckpointStore(imager, model, keep=False)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _print_report(result: Validation) -> None:
    table = Table(box=None, pad_edge=False)
    for title in (*TITLES, *HOST_TITLES, *VERDICT_TITLES):
        is_word = title in (TITLES[0], *VERDICT_TITLES)
        table.add_column(title, justify="left" if is_word else "right")
    for trial in result.trials:
        table.add_row(*map(Text, _row(trial)))
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)
    for trial in result.trials:
        for reason in trial.reasons:
            typer.echo(f"{policy_word(trial.eviction)}: {reason}")
    judged = "GPU memory" if result.is_judged_by_gpu else "the host memory of the engine, for no GPU can be read here"
    typer.echo(f"Freed memory was judged by {judged}.")
    failed = sum(not trial.passed for trial in result.trials)
    typer.echo("All policies passed." if not failed else f"{failed} of {len(result.trials)} policies failed.")


def policy_word(eviction: Eviction) -> str:
    """``Offload+KeepRunning``, as 0.7.7 writes it."""
    words = (eviction.weights.value, eviction.process.value)
    return "+".join("".join(part.capitalize() for part in word.split("_")) for word in words)


def _row(trial: Trial) -> tuple[str, ...]:
    moments = (trial.before, trial.asleep, trial.awake)
    return (
        policy_word(trial.eviction),
        _seconds(trial.sleep_seconds),
        _seconds(trial.wake_seconds),
        *(_number(memory and memory.gpu_mib) for memory in moments),
        *(_number(memory and memory.host_mib) for memory in moments),
        {True: "match", False: "MISMATCH", None: "-"}[trial.is_same_answer],
        "OK" if trial.passed else "FAIL",
    )


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


def _number(mib: int | Memory | None) -> str:
    return "-" if mib is None else str(mib)


def document(result: Validation) -> dict[str, Any]:
    """The result as JSON; null where something was not reached or cannot be read."""
    return {
        "model": result.model,
        "baseline": result.baseline,
        "freed_memory_judged_by": "gpu" if result.is_judged_by_gpu else "host",
        "passed": result.passed,
        "policies": [_trial_document(trial) for trial in result.trials],
    }


def _trial_document(trial: Trial) -> dict[str, Any]:
    moments = {"before": trial.before, "asleep": trial.asleep, "awake": trial.awake}
    return {
        "policy": str(trial.eviction),
        "sleep_seconds": trial.sleep_seconds,
        "wake_seconds": trial.wake_seconds,
        "gpu_mib": {moment: None if memory is None else memory.gpu_mib for moment, memory in moments.items()},
        "host_mib": {moment: None if memory is None else memory.host_mib for moment, memory in moments.items()},
        "same_answer": trial.is_same_answer,
        "passed": trial.passed,
        "reasons": trial.reasons,
    }
