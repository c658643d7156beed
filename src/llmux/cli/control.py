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

LONGEST_IN_SECONDS = 120
"""Longer times are told in minutes."""

Result = TypeVar("Result")


def status(url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None, json: JsonOption = False) -> None:
    """Show which model is on the GPU, and the state, queue and eviction of every model.

    Waiting counts queued requests, In flight those at the engine, and Frozen those suspended with their engine. An
    eviction that changed the model's output is marked, and so is a model that is about to leave because nobody asks for
    it. Needs, where models are placed by memory, is what each takes of a GPU, and how that is known. GPU leases of
    other programs ('llmux run') stand above the table, and below it, for each model with waiting requests, how long
    the oldest has waited, and for what. The status page at / shows the same in a browser.
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
    if (prefetch := document.get("prefetch")) is not None:
        typer.echo("reading ahead {model} ({reason}): {done_mib} of {total_mib} MiB".format_map(prefetch))
    if (overload := document.get("overload_seconds")) is not None:
        load = document.get("offered_load")
        times = "" if load is None else f" ({load:.1f} times as much)"
        typer.echo(f"more is asked of the GPUs than they can do{times}, for {overload:.0f} s: requests will time out")
    for lease in document["gpu_leases"]:
        typer.echo(_lease_line(lease))
    models = document["models"]
    needs = ("Needs",) if any(entry["gpu_need"] for entry in models.values()) else ()
    titles = ("Model", "State", *needs, "Waiting", "In flight", "Frozen", "Eviction", "pid")
    _print_table(titles, _rows(models, shows_needs=bool(needs)))
    for name, entry in models.items():
        if entry["waits"] is not None:
            expected = entry["expected_in_seconds"]
            forecast = "" if expected is None else f", expected in {expected:.0f} s"
            typer.echo(f"{name}, {entry['oldest_wait_seconds']:.0f} s so far{forecast}: {entry['waits']['text']}")


def switch(model: ModelArgument, url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Bring a model onto the GPU and wait until it is there.

    The model that is there now is drained and evicted as for a request. In manual mode the pin moves to the new one.
    """
    _command(url, admin_key, "/control/switch", {"model": model})


def pin(
    model: ModelArgument,
    keep: Annotated[
        bool, typer.Option("--keep", help="Serve others too, beside it; only what does not fit there gets 503.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
    admin_key: KeyOption = None,
) -> None:
    """Bring a model onto the GPU and serve no other until it is unpinned.

    Requests for other models are answered with 503 meanwhile. If the switch fails, the mode stays as it was.

    Example: llmux pin embedder --keep has it stay on the GPU while others take turns in the rest of the memory.
    """
    _command(url, admin_key, "/control/pin", {"model": model, "keep": keep})


def unpin(url: UrlOption = DEFAULT_URL, admin_key: KeyOption = None) -> None:
    """Remove every pin, and let requests switch models again.

    Until llmux restarts that goes for pins of the configuration, too.
    """
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


def _rows(models: dict[str, Any], *, shows_needs: bool) -> list[tuple[str, ...]]:
    return [
        (
            name,
            entry["process_state"]
            + (", stays" if entry["stays"] else "")
            + _places(entry["gpu_mib"])
            + _host_memory(entry["host_mib"])
            + _departure(entry)
            + _transfer(entry["images"]),
            *((_need(entry["gpu_need"]),) if shows_needs else ()),
            str(entry["queue_depth"]),
            str(entry["in_flight"]),
            str(entry["frozen"]),
            _as_text(entry["eviction"]) + _mismatches(entry["unfaithful"]),
            str(entry["pid"] or ""),
        )
        for name, entry in models.items()
    ]


def _lease_line(lease: dict[str, Any]) -> str:
    """A GPU lease: whose it is, and what it waits for or holds."""
    title = f"GPU lease {lease['lease']} ({lease['command']})"
    if lease["held_seconds"] is None:
        return f"{title}: {lease['waits']['text']}"
    until = "" if lease["ends_in_seconds"] is None else f", ends in {lease['ends_in_seconds']:.0f} s"
    return f"{title}: {lease['state']} for {lease['held_seconds']:.0f} s{until}{_places(lease['gpu_mib'])}"


def _transfer(images: dict[str, Any] | None) -> str:
    """The transfer of an image that is under way."""
    transfer = (images or {}).get("transfer")
    return f" ({transfer['direction']} {transfer['percent']} % of {transfer['mib']} MiB)" if transfer else ""


def _places(held_mib: dict[str, int]) -> str:
    return f" ({', '.join(f'{mib} MiB of GPU {gpu}' for gpu, mib in held_mib.items())})" if held_mib else ""


def _host_memory(held_mib: int | None) -> str:
    return f" ({held_mib} MiB of host memory)" if held_mib else ""


def _departure(entry: dict[str, Any]) -> str:
    """When it leaves the GPU if nobody asks for it."""
    seconds = entry["leaves_in_seconds"]
    if seconds is None:
        return ""
    return f" (leaves in {f'{seconds:.0f} s' if seconds < LONGEST_IN_SECONDS else f'{seconds / 60:.0f} min'})"


def _need(need: dict[str, Any] | None) -> str:
    """What a model needs of each of its GPUs, and how that is known."""
    if need is None:
        return ""
    more = "" if need["said_mib"] is None else f", more than the {need['said_mib']} MiB that were said"
    return f"{need['mib']} MiB ({need['source']}{more})"


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
