"""``llmux checkpoint`` and ``llmux restore``: one engine into an image and back, without a server."""

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmux.cli.options import ConfigOption, ModelArgument, VerboseOption, load_settings, parse_eviction
from llmux.cli.running import IgnoredPortOption, JsonOption, run_engine_job, show_step
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction, Process
from llmux.instances.checkpoint_store import CheckpointStore
from llmux.server.images import build_transfers, require_checkpointer
from llmux.tools.checkpointing import Checkpoint, Restored, make_checkpoint, restore_to_stay
from llmux.tools.standalone import Memory, open_standalone

EvictionOption = Annotated[
    str,
    typer.Option(
        "--eviction", metavar="W+checkpoint", help="What happens to the weights before the dump: retain, offload, ..."
    ),
]
NoWarmupOption = Annotated[bool, typer.Option("--no-warmup", help="Do not send a prompt before the dump.")]


def checkpoint(
    model: ModelArgument,
    config: ConfigOption = Path("config.json"),
    eviction: EvictionOption = "discard+checkpoint",
    no_warmup: NoWarmupOption = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    port: IgnoredPortOption = None,
) -> None:
    """Start a model's engine and dump it into an image, from which llmux later restores it instead of a cold start.

    Stop llmux first: the engine needs the GPU. The image replaces an earlier one. It is valid for an engine that is
    started with the same arguments, environment and files: on this machine, or with an object store, whose upload the
    command waits for, on any machine like it. The command prints the checkpoint_path to add to the configuration. It
    needs criu, root, and the section 'checkpoint'.

    Example: llmux checkpoint qwen -c llmux.yaml

    Exit codes: 0 the image was made; 1 it was not; 2 wrong usage; 130 interrupted.
    """
    wanted = parse_eviction(eviction)
    if wanted.process is not Process.CHECKPOINT:
        raise typer.BadParameter(f"'{eviction}' makes no image: use retain, offload or discard with +checkpoint")
    settings = load_settings(config)
    made = run_engine_job(_checkpoint(settings, model, wanted, warms_up=not no_warmup), verbose=verbose)
    if json:
        typer.echo(json_text.dumps(checkpoint_document(made), indent=2))
        return
    typer.echo(
        f"The engine of '{model}' is in {made.path}: {made.size_mib} MiB, {made.seconds:.1f} s "
        f"(its start: {made.start_seconds:.1f} s)."
    )
    if made.stored_at is not None and made.upload_seconds is not None:
        typer.echo(f"It is stored at {made.stored_at}, too: {made.upload_seconds:.1f} s.")
    typer.echo(f"Before: {_memory_text(made.before)}.")
    typer.echo(f"After: {_memory_text(made.after)}.")
    typer.echo(f"To start it from there, add to models.{model} in {config}:")
    typer.echo(f'  "checkpoint_path": {json_text.dumps(str(made.path))}')


def restore(
    model: ModelArgument,
    config: ConfigOption = Path("config.json"),
    json: JsonOption = False,
    verbose: VerboseOption = False,
    port: IgnoredPortOption = None,
) -> None:
    """Restore a model's engine from its image and leave it running without llmux.

    The image is the one that 'llmux checkpoint', or a server with the same configuration, has made; one that is not on
    this machine is fetched from the object store, where one is configured. The engine is restored on its old port,
    woken, and sent one prompt. The command prints how to stop it; an llmux that is started later does not know about
    it.

    Example: llmux restore qwen -c llmux.yaml

    Exit codes: 0 the engine runs; 1 it could not be restored, and nothing of it is left; 2 wrong usage; 130
    interrupted.
    """
    settings = load_settings(config)
    restored = run_engine_job(_restore(settings, model), verbose=verbose)
    if json:
        typer.echo(json_text.dumps(asdict(restored) | {"path": str(restored.path)}, indent=2))
        return
    typer.echo(f"The engine of '{model}' runs again after {restored.seconds:.1f} s, from {restored.path}.")
    typer.echo(f"It listens on http://127.0.0.1:{restored.port} (pid {restored.pid}); {_memory_text(restored.memory)}.")
    typer.echo(f"It answers: {restored.answer!r}")
    typer.echo(f"To stop it with everything that belongs to it: kill {restored.shim_pid}")


async def _checkpoint(settings: Settings, model: str, eviction: Eviction, *, warms_up: bool) -> Checkpoint:
    checkpointer = require_checkpointer(settings)
    # With keep=True an image that is still valid would be reused; this command is asked for a new one.
    images = CheckpointStore(checkpointer, model, keep=False)
    transfers = build_transfers(settings, checkpointer)
    async with open_standalone(settings, model, images=images) as engine:
        return await make_checkpoint(engine, checkpointer, eviction, show_step, warms_up=warms_up, transfers=transfers)


async def _restore(settings: Settings, model: str) -> Restored:
    checkpointer = require_checkpointer(settings)
    keep = settings.checkpoint is not None and settings.checkpoint.keep_images
    given = checkpointer.image_path(model) if model in settings.models else None
    transfers = build_transfers(settings, checkpointer)
    images = CheckpointStore(checkpointer, model, keep=keep, configured=given, transfers=transfers)
    async with open_standalone(settings, model, images=images) as engine:
        return await restore_to_stay(engine, checkpointer, show_step)


def checkpoint_document(made: Checkpoint) -> dict[str, Any]:
    """The result as JSON. GPU memory is null where it cannot be read."""
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
        "stored_at": made.stored_at,
        "upload_seconds": made.upload_seconds,
    }


def _memory_text(memory: Memory) -> str:
    gpu = "GPU memory cannot be read" if memory.gpu_mib is None else f"{memory.gpu_mib} MiB of GPU memory"
    return f"{gpu}, {memory.host_mib} MiB of host memory"
