"""The operator's commands: ``status``, ``switch``, ``pin``, ``unpin``, ``mode``, ``sleep``, ``wake``, ``eviction``.

All talk to a running llmux. Exit codes: 0 done; 1 refused, failed, or nothing listens; 2 wrong usage.
"""

import json as json_text
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmux.cli.options import DEFAULT_URL, KeyOption, UrlOption, eviction_of
from llmux.cli.remote import RemoteControl
from llmux.core.eviction import Eviction
from llmux.errors import LlmuxError

PIPE_WIDTH = 1000


class ModeWord(StrEnum):
    """Who switches."""

    AUTO = "auto"
    MANUAL = "manual"


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A configured model.")]
OptionalModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help="A configured model.")]
EvictionArgument = Annotated[
    Eviction | None, typer.Argument(metavar="W+P", parser=eviction_of, help="Such as offload+keep_running.")
]
EvictionOption = Annotated[
    Eviction | None,
    typer.Option("--eviction", parser=eviction_of, metavar="W+P", help="Instead of the model's own, this once."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print llmux's answer as it is.")]

Result = TypeVar("Result")


def status(url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None, json: JsonOption = False) -> None:
    """Show which model is on the GPU, and of each model its state and who waits for it."""
    document = _attempt(lambda: RemoteControl(url, admin_key).get("/control/status"))
    if json:
        typer.echo(json_text.dumps(document))
        return
    mode = document["mode"]
    pinned = f", pinned to {mode['pinned']}" if "pinned" in mode else ""
    typer.echo(f"{document['state']} (mode {mode['mode']}{pinned})")
    _print_table(("Model", "State", "Waiting", "In flight", "Frozen", "Eviction", "pid"), _rows(document["models"]))


def switch(model: ModelArgument, url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Bring a model onto the GPU and wait until it is there. In manual mode the pin moves to it."""
    _do(url, admin_key, "/control/switch", {"model": model})


def pin(model: ModelArgument, url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Bring a model onto the GPU and serve no other until it is unpinned."""
    _do(url, admin_key, "/control/pin", {"model": model})


def unpin(url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Let requests decide again which model is on the GPU."""
    _do(url, admin_key, "/control/unpin", {})


def mode(
    word: Annotated[ModeWord, typer.Argument(metavar="auto|manual", help="Who switches: requests, or you.")],
    url: UrlOption = DEFAULT_URL,
    admin_key: KeyOption = None,
) -> None:
    """Choose whether requests switch models, or only you do."""
    _do(url, admin_key, "/control/mode", {"mode": word.value})


def sleep(
    model: ModelArgument,
    eviction: EvictionOption = None,
    url: UrlOption = DEFAULT_URL,
    admin_key: KeyOption = None,
) -> None:
    """Take a model off the GPU once its requests have ended, and wait for that."""
    _do(url, admin_key, "/control/sleep", {"model": model, "eviction": _words(eviction)})


def wake(model: ModelArgument, url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Bring a model onto the GPU and wait until it is there; the mode stays as it is."""
    _do(url, admin_key, "/control/wake", {"model": model})


def eviction(
    model: OptionalModelArgument = None,
    to: EvictionArgument = None,
    url: UrlOption = DEFAULT_URL,
    admin_key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Show how models leave the GPU, or change it for one of them until llmux ends."""
    if model is not None and to is not None:
        _do(url, admin_key, "/control/eviction", {"model": model, "eviction": _words(to)})
        return
    document = _attempt(lambda: RemoteControl(url, admin_key).get("/control/eviction"))
    models = document["models"]
    if model is not None:
        if model not in models:
            _fail(f"the model '{model}' does not exist; configured models: {', '.join(models)}")
        models = {model: models[model]}
    if json:
        typer.echo(json_text.dumps({"models": models}))
        return
    rows = [(name, _sum(entry["eviction"]), entry["process_state"]) for name, entry in models.items()]
    _print_table(("Model", "Eviction", "State"), rows)


def _do(url: str, admin_key: str | None, path: str, document: dict[str, Any]) -> None:
    typer.echo(_attempt(lambda: RemoteControl(url, admin_key).post(path, document)))


def _attempt(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except LlmuxError as error:
        _fail(str(error))


def _fail(reason: str) -> NoReturn:
    typer.echo(f"llmux: {reason}", err=True)
    raise typer.Exit(1)


def _rows(models: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            entry["process_state"],
            str(entry["queue_depth"]),
            str(entry["in_flight"]),
            str(entry["frozen"]),
            _sum(entry["eviction"]) + _distrusted(entry["unfaithful"]),
            str(entry["pid"] or ""),
        )
        for name, entry in models.items()
    ]


def _distrusted(evictions: Sequence[str]) -> str:
    return f" (answers differently after {', '.join(evictions)})" if evictions else ""


def _words(eviction: Eviction | None) -> dict[str, str] | None:
    return None if eviction is None else {"weights": eviction.weights.value, "process": eviction.process.value}


def _sum(words: dict[str, str]) -> str:
    return f"{words['weights']}+{words['process']}"


def _print_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        numeric = title in ("Waiting", "In flight", "Frozen", "pid")
        table.add_column(title, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Names and reasons are text, not rich's markup.
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        # Whoever reads a pipe wants one line per model.
        console.width = PIPE_WIDTH
    console.print(table)
