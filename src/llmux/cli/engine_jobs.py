"""What ``validate``, ``checkpoint`` and ``restore`` share: they start one engine themselves, and take a while."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from llmux.errors import LlmuxError
from llmux.observability.logging import configure_logging
from llmux.tools.standalone import Memory

INTERRUPTED = 130

Result = TypeVar("Result")

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A configured model.")]
ConfigOption = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="YAML or JSON file.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show all logs, and the engine's output.")]
PortOption = Annotated[int | None, typer.Option("--port", "-p", hidden=True, help="As in 0.7.7; without effect here.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def run_to_end(work: Coroutine[Any, Any, Result], *, verbose: bool) -> Result:
    """Return the work's result; errors and Ctrl-C end the program, with 1 and 130, once the engine is gone."""
    configure_logging("warning", verbose=verbose)
    try:
        with asyncio.Runner() as runner:
            return runner.run(work)
    except LlmuxError as error:
        typer.echo(f"llmux: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def show_progress(what: str) -> None:
    """Show on standard error what is being done now."""
    typer.echo(f"{what} ...", err=True)


def memory_text(memory: Memory) -> str:
    """Memory of the GPUs and of the host, as a sentence."""
    gpu = "GPU memory cannot be read" if memory.gpu_mib is None else f"{memory.gpu_mib} MiB of GPU memory"
    return f"{gpu}, {memory.host_mib} MiB of host memory"
