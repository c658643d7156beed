"""``llmux serve``: run the gateway."""

from pathlib import Path
from typing import Annotated

import typer

from llmux.cli.options import load_settings
from llmux.cli.running import run_server
from llmux.observability.logging import configure_logging
from llmux.server.app import serve as serve_forever
from llmux.simulation.gpus import find_virtual_gpu

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="YAML or JSON file; those of llmux 0.7.7 work unchanged.")
]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on, over the file's.")]
PortOption = Annotated[int | None, typer.Option("--port", "-p", min=0, max=65535, help="Port, over the file's.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show debug logs, and the engines' output.")]


def serve(
    config: ConfigOption = Path("config.json"),
    host: HostOption = None,
    port: PortOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve the configured models on one OpenAI-compatible endpoint.

    Engines are started when the first request for their model comes. SIGTERM or Ctrl-C drains and stops everything; a
    second one does not wait. Exit codes: 0 stopped, 1 could not start, 2 wrong usage, 70 internal error.
    """
    settings = load_settings(config, host, port)
    configure_logging(settings.log_level.value, verbose=verbose)
    run_server(serve_forever(settings, find_virtual_gpu=find_virtual_gpu))
