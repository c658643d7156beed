"""The operator's commands, each one call of a running llmux's control API: ``status``, ``switch``, ``pin``, ``unpin``,
``mode``, ``sleep``, ``wake``, ``eviction``.

Exit codes: 0 done; 1 refused, failed, or llmux is not running; 2 wrong usage.
"""

import json as json_text
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmux.cli.options import DEFAULT_URL, PIPE_WIDTH, KeyOption, ModelArgument, UrlOption, parse_eviction
from llmux.cli.remote import RemoteControl
from llmux.core.eviction import Eviction
from llmux.errors import LlmuxError


class ModeWord(StrEnum):
    """Who decides about switches: requests, or the operator alone."""

    AUTO = "auto"
    MANUAL = "manual"


OptionalModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help="A model of the configuration.")]
EvictionArgument = Annotated[
    Eviction | None,
    typer.Argument(metavar="W+P", parser=parse_eviction, help="Weights and process, such as offload+keep_running."),
]
EvictionOption = Annotated[
    Eviction | None,
    typer.Option(
        "--eviction", parser=parse_eviction, metavar="W+P", help="Use this eviction once, instead of the model's own."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print llmux's JSON answer.")]

Result = TypeVar("Result")


def status(url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None, json: JsonOption = False) -> None:
    """Show which model is on the GPU, and the state, queue and eviction of every model.

    Waiting counts queued requests, In flight those at the engine, and Frozen those suspended with their engine. An
    eviction that changed the model's output is marked. The status page at / shows the same in a browser.
    """
    document = _attempt(lambda llmux: llmux.get("/control/status"), url, admin_key)
    if json:
        typer.echo(json_text.dumps(document))
        return
    mode = document["mode"]
    pinned = f", pinned to {mode['pinned']}" if "pinned" in mode else ""
    typer.echo(f"{document['state']} (mode {mode['mode']}{pinned})")
    for name, gpu in document["gpus"].items():
        typer.echo(f"GPU {name}: {gpu['free_mib']} of {gpu['memory_mib']} MiB free")
    _print_table(("Model", "State", "Waiting", "In flight", "Frozen", "Eviction", "pid"), _rows(document["models"]))


def switch(model: ModelArgument, url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Bring a model onto the GPU and wait until it is there.

    The model that is there now is drained and evicted as for a request. In manual mode the pin moves to the new one.
    """
    _command(url, admin_key, "/control/switch", {"model": model})


def pin(model: ModelArgument, url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Bring a model onto the GPU and serve no other until it is unpinned.

    Requests for other models are answered with 503 meanwhile. If the switch fails, the mode stays as it was.
    """
    _command(url, admin_key, "/control/pin", {"model": model})


def unpin(url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Remove the pin and let requests switch models again."""
    _command(url, admin_key, "/control/unpin", {})


def mode(
    word: Annotated[
        ModeWord, typer.Argument(metavar="auto|manual", help="auto: requests switch models; manual: only you do.")
    ],
    url: UrlOption = DEFAULT_URL,
    admin_key: KeyOption = None,
) -> None:
    """Choose whether requests switch models, or only the operator does.

    In manual mode a request for a model that is not active is answered with 503. Changing the mode removes a pin.
    """
    _command(url, admin_key, "/control/mode", {"mode": word.value})


def sleep(
    model: ModelArgument,
    eviction: EvictionOption = None,
    url: UrlOption = DEFAULT_URL,
    admin_key: KeyOption = None,
) -> None:
    """Take a model off the GPU once its requests have ended, and wait for that.

    In auto mode the next request for it wakes it again.

    Example: llmux sleep qwen --eviction retain+stop stops the engine, so that its next start is a cold one.
    """
    _command(url, admin_key, "/control/sleep", {"model": model, "eviction": _as_data(eviction)})


def wake(model: ModelArgument, url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Bring a model onto the GPU and wait until it is there, without changing the mode or the pin."""
    _command(url, admin_key, "/control/wake", {"model": model})


def eviction(
    model: OptionalModelArgument = None,
    to: EvictionArgument = None,
    url: UrlOption = DEFAULT_URL,
    admin_key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Show how models leave the GPU, or change it for one of them until llmux restarts.

    An eviction is written WEIGHTS+PROCESS: retain, offload or discard, and keep_running, checkpoint or stop.

    Example: llmux eviction qwen discard+keep_running
    """
    if model is not None and to is not None:
        _command(url, admin_key, "/control/eviction", {"model": model, "eviction": _as_data(to)})
        return
    document = _attempt(lambda llmux: llmux.get("/control/eviction"), url, admin_key)
    models = document["models"]
    if model is not None:
        if model not in models:
            _fail(f"the model '{model}' does not exist; configured models: {', '.join(models)}")
        models = {model: models[model]}
    if json:
        typer.echo(json_text.dumps({"models": models}))
        return
    rows = [(name, _as_text(entry["eviction"]), entry["process_state"]) for name, entry in models.items()]
    _print_table(("Model", "Eviction", "State"), rows)


def _command(url: str, admin_key: str | None, path: str, document: dict[str, Any]) -> None:
    typer.echo(_attempt(lambda llmux: llmux.post(path, document), url, admin_key))


def _attempt(call: Callable[[RemoteControl], Result], url: str, admin_key: str | None) -> Result:
    try:
        return call(RemoteControl(url, admin_key))
    except LlmuxError as error:
        _fail(str(error))


def _fail(reason: str) -> NoReturn:
    typer.echo(f"llmux: {reason}", err=True)
    raise typer.Exit(1)


def _rows(models: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            entry["process_state"] + _places(entry["gpu_mib"]) + _transfer(entry["images"]),
            str(entry["queue_depth"]),
            str(entry["in_flight"]),
            str(entry["frozen"]),
            _as_text(entry["eviction"]) + _mismatches(entry["unfaithful"]),
            str(entry["pid"] or ""),
        )
        for name, entry in models.items()
    ]


def _transfer(images: dict[str, Any] | None) -> str:
    """The transfer of an image that is under way."""
    transfer = (images or {}).get("transfer")
    return f" ({transfer['direction']} {transfer['percent']} % of {transfer['mib']} MiB)" if transfer else ""


def _places(held_mib: dict[str, int]) -> str:
    return f" ({', '.join(f'{mib} MiB of GPU {gpu}' for gpu, mib in held_mib.items())})" if held_mib else ""


def _mismatches(evictions: Sequence[str]) -> str:
    return f" (answers differently after {', '.join(evictions)})" if evictions else ""


def _as_data(eviction: Eviction | None) -> dict[str, str] | None:
    return None if eviction is None else {"weights": eviction.weights.value, "process": eviction.process.value}


def _as_text(words: dict[str, str]) -> str:
    return f"{words['weights']}+{words['process']}"


def _print_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        numeric = title in ("Waiting", "In flight", "Frozen", "pid")
        table.add_column(title, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, because a model's name may look like rich's markup.
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        # In a pipe, one line per model.
        console.width = PIPE_WIDTH
    console.print(table)
