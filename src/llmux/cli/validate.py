"""``llmux validate``: does a model survive each eviction with the same output, and does it really free its memory?"""

import asyncio
import csv
import json as json_text
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import unified_diff
from pathlib import Path
from typing import Annotated, Any, assert_never

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmux.checkpoints.criu import inspect_criu
from llmux.cli.options import PIPE_WIDTH, ConfigOption, ModelArgument, VerboseOption, load_settings, parse_eviction
from llmux.cli.running import IgnoredPortOption, JsonOption, run_engine_job, show_step
from llmux.config.edit import read_file, replace_file, with_eviction
from llmux.config.settings import CanaryMode, Settings
from llmux.control.status import policy_word
from llmux.core.eviction import STOP, Eviction, Process
from llmux.engines.base import Engine
from llmux.errors import CriuUnusable, LlmuxError
from llmux.gpus.cuda import CudaUnusable
from llmux.instances.checkpoint_store import CheckpointStore
from llmux.server.build import build_cuda
from llmux.server.images import build_checkpointer
from llmux.tools.standalone import Memory, open_standalone
from llmux.tools.validation import Pick, Trial, Validation, pick_best
from llmux.tools.validation import validate as validate_engine

TITLES = ("Policy", "Sleep (s)", "Wake (s)", "GPU Before", "GPU After", "GPU Wake (MiB)")
HOST_TITLES = ("Host Before", "Host After", "Host Wake (MiB)")
VERDICT_TITLES = ("Response", "Pass")

MATRIX_COLUMNS = (
    *("engine", "version", "model", "eviction", "passed", "same_answer", "freed_mib", "freed_memory_judged_by"),
    *("sleep_seconds", "wake_seconds", "reasons"),
)

PoliciesOption = Annotated[
    str | None,
    typer.Option(
        "--policies",
        metavar="W+P,W+P",
        help="The evictions to try, in this order. Default: those that keep the engine running, else stop.",
    ),
]
MatrixOption = Annotated[
    Path | None,
    typer.Option(
        "--matrix",
        metavar="FILE",
        help="Append a line for each eviction to this CSV file: engine, version, model, eviction, result, figures.",
        dir_okay=False,
    ),
]


PickOption = Annotated[
    bool,
    typer.Option(
        "--pick",
        help="Try every eviction that can work, and write the best one into the configuration: of those that pass, the "
        "quickest there and back; of those within a tenth of it, the one that leaves least in host memory.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="With --pick: show what would be changed, and change nothing.")
]


def validate(
    model: ModelArgument,
    config: ConfigOption = Path("config.json"),
    policies: PoliciesOption = None,
    matrix: MatrixOption = None,
    pick: PickOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    port: IgnoredPortOption = None,
) -> None:
    """Start a model's engine, evict and wake it by each eviction in turn, and report which of them work.

    Stop llmux first: the engine needs the GPU. An eviction passes if the model then gives the same answer as before, if
    it freed its memory in between (GPU memory, or host memory where no GPU can be read), and if its processes were gone
    after stop and checkpoint.

    Example: llmux validate qwen -c llmux.yaml --policies offload+keep_running,discard+keep_running,retain+stop

    Example: llmux validate qwen -c llmux.yaml --pick

    Exit codes: 0 all passed, or one was picked; 1 some failed, or the engine could not be started; 2 wrong usage; 130
    interrupted.
    """
    if dry_run and not pick:
        raise typer.BadParameter("--dry-run needs --pick")
    written = _read(config) if pick else ""
    evictions = [parse_eviction(word.strip()) for word in (policies or "").split(",") if word.strip()]
    if policies is not None and not evictions:
        raise typer.BadParameter("no policy to try")
    settings = load_settings(config)
    if not evictions and model in settings.models:
        engine = settings.engine_of(model)
        evictions, not_tried = possible_evictions(settings, engine) if pick else (default_evictions(engine), {})
        for reason, left_out in not_tried.items():
            typer.echo(f"not tried: {', '.join(map(str, left_out))}: {reason}", err=True)
    # The canary is part of the verdict, so it must run at every wake, whatever the file says.
    settings = settings.model_copy(update={"canary": CanaryMode.ALWAYS})
    result = run_engine_job(_validate(settings, model, evictions), verbose=verbose)
    best = pick_best(result) if pick else None
    if json:
        picked = {"picked": None if best is None else str(best.trial.eviction)} if pick else {}
        typer.echo(json_text.dumps(document(result) | picked, indent=2))
    else:
        _print_report(result)
    if matrix is not None:
        append_to_matrix(matrix, result)
    if pick:
        _write_pick(config, written, result.model, best, dry_run=dry_run, is_diff_result=not json)
    elif not result.passed:
        raise typer.Exit(1)


def default_evictions(engine: Engine) -> list[Eviction]:
    """What is worth knowing of an engine without being asked: sleeping, or stopping where it cannot sleep."""
    running = [one for one in engine.evictions() if one.process is Process.KEEP_RUNNING and one.leaves_the_gpu]
    return running or [STOP]


def possible_evictions(settings: Settings, engine: Engine) -> tuple[list[Eviction], dict[str, list[Eviction]]]:
    """Those that free the GPU's memory and can work here; and by reason those that cannot, which costs no start."""
    wanted = [
        one for one in engine.evictions() if one.leaves_the_gpu and (one.process is not Process.STOP or one == STOP)
    ]
    refusals = {process: _why_not_here(settings, process) for process in {one.process for one in wanted}}
    possible: list[Eviction] = []
    not_tried: dict[str, list[Eviction]] = {}
    for eviction in wanted:
        if reason := refusals[eviction.process]:
            not_tried.setdefault(reason, []).append(eviction)
        else:
            possible.append(eviction)
    return possible, not_tried


def _why_not_here(settings: Settings, process: Process) -> str | None:
    try:
        match process:
            case Process.CHECKPOINT:
                if (checkpoint := settings.checkpoint) is None:
                    return "the section 'checkpoint' is missing"
                inspect_criu(checkpoint.criu_path, checkpoint.cuda_plugin_dir)
            case Process.CUDA_SUSPEND:
                asyncio.run(_check_cuda(settings))
            case Process.KEEP_RUNNING | Process.STOP:
                pass
            case _:
                assert_never(process)
    except (CriuUnusable, CudaUnusable) as refusal:
        return str(refusal)
    return None


async def _check_cuda(settings: Settings) -> None:
    cuda = build_cuda(settings)
    try:
        await cuda.check()
    finally:
        await cuda.close()


def _read(config: Path) -> str:
    try:
        return read_file(config)
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{config} cannot be read: {error}") from None


def _write_pick(
    config: Path, written: str, model: str, best: Pick | None, *, dry_run: bool, is_diff_result: bool
) -> None:
    """Write the best eviction into the file, or show how. Ends the program with 1 if there is none, or it cannot be."""
    if best is None:
        typer.echo("no eviction passed: nothing is written", err=True)
        raise typer.Exit(1)
    eviction = best.trial.eviction
    try:
        changed = with_eviction(written, config, model, eviction, _figures(best))
        if dry_run:
            lines = (written.splitlines(keepends=True), changed.splitlines(keepends=True))
            typer.echo("".join(unified_diff(*lines, str(config), str(config))), nl=False, err=not is_diff_result)
        else:
            replace_file(config, changed, written)
    except (LlmuxError, OSError) as error:
        typer.echo(f"llmux: {error}", err=True)
        raise typer.Exit(1) from None
    verb = "would be written" if dry_run else "written"
    typer.echo(f"{model}: {eviction} {verb} to {config} ({_figures(best)})", err=True)


def _figures(best: Pick) -> str:
    def seconds(trial: Trial) -> str:
        return f"{trial.sleep_seconds:.2f} s to leave, {trial.wake_seconds:.2f} s to come back"

    others = [f"{trial.eviction} {trial.switch_seconds:.2f} s" for trial in best.others]
    return seconds(best.trial) + (f"; there and back: {', '.join(others)}" if others else "")


def append_to_matrix(file: Path, result: Validation) -> None:
    """Add the trials to a table that collects them over engines, versions and models. Raises typer.BadParameter."""
    try:
        with file.open("a", newline="") as sink:
            writer = csv.DictWriter(sink, MATRIX_COLUMNS)
            if sink.tell() == 0:
                writer.writeheader()
            writer.writerows(_matrix_row(result, trial) for trial in result.trials)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be written: {error.strerror}") from error


def _matrix_row(result: Validation, trial: Trial) -> dict[str, Any]:
    return {
        "engine": result.engine,
        "version": result.version or "",
        "model": result.model_path or result.model,
        "eviction": str(trial.eviction),
        "passed": trial.passed,
        "same_answer": trial.is_same_answer,
        "freed_mib": trial.freed_mib(of_gpu=result.is_judged_by_gpu),
        "freed_memory_judged_by": "gpu" if result.is_judged_by_gpu else "host",
        "sleep_seconds": trial.sleep_seconds,
        "wake_seconds": trial.wake_seconds,
        "reasons": "; ".join(trial.reasons),
    }


async def _validate(settings: Settings, model: str, evictions: Sequence[Eviction]) -> Validation:
    with _separate_images(settings, model, evictions) as images:
        async with open_standalone(settings, model, images=images) as engine:
            return await validate_engine(engine, evictions, show_step)


@contextmanager
def _separate_images(settings: Settings, model: str, evictions: Sequence[Eviction]) -> Iterator[CheckpointStore | None]:
    """A temporary directory for images, so that those of the server are neither used nor replaced. None if not needed.

    It is beside them because only that file system is known to have room for an image.
    """
    checkpoint = settings.checkpoint
    if checkpoint is None or not any(eviction.process is Process.CHECKPOINT for eviction in evictions):
        yield None
        return
    checkpoint.images_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=".validate-", dir=checkpoint.images_dir))
    checkpointer = build_checkpointer(settings, directory)
    assert checkpointer is not None
    try:
        yield CheckpointStore(checkpointer, model, keep=False)
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
    """The result as JSON. Null stands for what was not reached or cannot be read."""
    return {
        "model": result.model,
        "engine": result.engine,
        "version": result.version,
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
