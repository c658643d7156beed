"""``llmux checkpoint``: make a model's image before anybody asks for the model."""

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from llmux.cli.control import eviction_of
from llmux.cli.engine_work import (
    ConfigOption,
    JsonOption,
    ModelArgument,
    PortOption,
    VerboseOption,
    memory_text,
    run_to_end,
    tell,
)
from llmux.cli.serve import load_settings
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process
from llmux.engines.checkpoint_store import CheckpointStore
from llmux.server.build import require_checkpointer
from llmux.tools.checkpointing import Checkpoint, make_checkpoint
from llmux.tools.standalone import open_standalone

EvictionOption = Annotated[
    str, typer.Option("--eviction", metavar="W+checkpoint", help="What becomes of the weights before the dump.")
]
NoWarmupOption = Annotated[bool, typer.Option("--no-warmup", help="Ask the engine nothing before the dump.")]


def checkpoint(
    model: ModelArgument,
    config: ConfigOption = Path("config.json"),
    eviction: EvictionOption = "discard+checkpoint",
    no_warmup: NoWarmupOption = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    port: PortOption = None,
) -> None:
    """Start a model alone, and put its engine into an image, from which llmux then starts it in a moment.

    An image that is there already is replaced. It is good for this machine, and for an engine that is started with the
    same arguments and environment. Stop llmux first: the engine needs the GPU. Exit codes: 0 done; 1 no image was made;
    2 wrong usage; 130 interrupted.
    """
    wanted = eviction_of(eviction)
    if wanted.process is not Process.CHECKPOINT:
        raise typer.BadParameter(f"'{eviction}' makes no image: use retain, offload or discard with +checkpoint")
    settings = load_settings(config, None, None)
    made = run_to_end(_checkpoint(settings, model, wanted, warms_up=not no_warmup), verbose=verbose)
    if json:
        typer.echo(json_text.dumps(document(made), indent=2))
        return
    typer.echo(
        f"The engine of '{model}' is in {made.path}: {made.size_mib} MiB, {made.seconds:.1f} s "
        f"(its start: {made.start_seconds:.1f} s)."
    )
    typer.echo(f"Before: {memory_text(made.before)}.")
    typer.echo(f"After: {memory_text(made.after)}.")
    typer.echo(f"To start it from there, add to models.{model} in {config}:")
    typer.echo(f'  "checkpoint_path": {json_text.dumps(str(made.path))}')


async def _checkpoint(settings: Settings, model: str, eviction: Eviction, *, warms_up: bool) -> Checkpoint:
    imager = require_checkpointer(settings)
    # Kept images are for a server that comes by again: here it is a new one that is wanted.
    images = CheckpointStore(imager, model, keep=False)
    async with open_standalone(settings, model, images=images) as engine:
        return await make_checkpoint(engine, imager, eviction, tell, warms_up=warms_up)


def document(made: Checkpoint) -> dict[str, Any]:
    """The result as JSON; GPU memory is null where it cannot be read."""
    return {
        "model": made.model,
        "checkpoint_path": str(made.path),
        "size_mib": made.size_mib,
        "eviction": str(made.eviction),
        "start_seconds": made.start_seconds,
        "seconds": made.seconds,
        "gpu_mib": {"before": made.before.gpu_mib, "after": made.after.gpu_mib},
        "host_mib": {"before": made.before.host_mib, "after": made.after.host_mib},
        "answer": made.answer,
    }
