"""``llmux restore``: bring a model's engine back from its image, to stay without llmux."""

import json as json_text
from dataclasses import asdict
from pathlib import Path

import typer

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
from llmux.engines.checkpoint_store import CheckpointStore
from llmux.server.build import require_checkpointer
from llmux.tools.checkpointing import Restored, restore_to_stay
from llmux.tools.standalone import open_standalone


def restore(
    model: ModelArgument,
    config: ConfigOption = Path("config.json"),
    json: JsonOption = False,
    verbose: VerboseOption = False,
    port: PortOption = None,
) -> None:
    """Bring a model's engine back from its image, wake it and ask it; it goes on running when this has ended.

    The image is the one that 'llmux checkpoint' or a server with the same configuration has made. Exit codes: 0 the
    engine runs; 1 it could not be restored, and nothing of it is left; 2 wrong usage; 130 interrupted.
    """
    settings = load_settings(config, None, None)
    restored = run_to_end(_restore(settings, model), verbose=verbose)
    if json:
        typer.echo(json_text.dumps(asdict(restored) | {"path": str(restored.path)}, indent=2))
        return
    typer.echo(f"The engine of '{model}' runs again after {restored.seconds:.1f} s, from {restored.path}.")
    typer.echo(f"It listens on http://127.0.0.1:{restored.port} (pid {restored.pid}); {memory_text(restored.memory)}.")
    typer.echo(f"It answers: {restored.answer!r}")
    typer.echo(f"To stop it with everything that belongs to it: kill {restored.shim_pid}")


async def _restore(settings: Settings, model: str) -> Restored:
    imager = require_checkpointer(settings)
    keep = settings.checkpoint is not None and settings.checkpoint.keep_images
    given = imager.image_path(model) if model in settings.models else None
    images = CheckpointStore(imager, model, keep=keep, configured=given)
    async with open_standalone(settings, model, images=images) as engine:
        return await restore_to_stay(engine, imager, tell)
