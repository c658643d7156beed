"""``llmux serve``: run the server."""

from pathlib import Path
from typing import Annotated

import typer

from llmux.cli.options import ConfigOption, VerboseOption, load_settings
from llmux.cli.running import run_server
from llmux.observability.background import stderr_in_background
from llmux.observability.logging import configure_logging
from llmux.server.app import serve as serve_forever

HostOption = Annotated[
    str | None, typer.Option("--host", help="Address to listen on; overrides the configuration's host.")
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", "-p", min=0, max=65535, help="Port to listen on; overrides the configuration's. 0: any."),
]


def serve(
    config: ConfigOption = Path("config.json"),
    host: HostOption = None,
    port: PortOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve the configured models on one OpenAI-compatible endpoint.

    The configuration may be a config.json of llmux 0.7.7. Engines are started at the first request for their model,
    unless the configuration says warmup. SIGTERM or Ctrl-C lets requests in flight finish and stops all engines; a
    second one stops at once.

    Example: llmux serve -c llmux.yaml, then send requests to http://127.0.0.1:3000/v1

    Exit codes: 0 stopped as asked; 1 could not start; 2 wrong usage; 70 internal error.
    """
    with stderr_in_background():
        settings = load_settings(config, host, port)
        configure_logging(settings.log_level.value, verbose=verbose)
        run_server(serve_forever(settings))
