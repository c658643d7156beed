"""``llmux migrate``: another program's configuration becomes llmux's."""

from collections import Counter
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from llmux.config.load import FILE_BYTES_MAX
from llmux.config.migration.convert import Converted, convert
from llmux.errors import ConfigError


def migrate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="llama-swap's YAML, or llama.cpp's INI (--models-preset).")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write here and not to standard output; no file is replaced."
        ),
    ] = None,
) -> None:
    """Write llmux's configuration from llama-swap's YAML or from the presets of llama.cpp's router (INI).

    Which of the two FILE is, its content tells. Macros and common sections are written out, and variables of the
    environment stay variables. Beside everything that could not be carried over stands a comment: why, and what to do
    instead. The same list is printed on standard error. Nothing is started.

    Example: llmux migrate llama-swap.yaml --output llmux.yaml && llmux check -c llmux.yaml

    A model whose cmd is 'llama-server --port ${PORT} -m /models/a.gguf -c 8192' becomes engine: llama_cpp, model_path:
    /models/a.gguf, extra_args: [-c, "8192"]. 'vllm serve' becomes engine: vllm, 'python -m sglang.launch_server' is
    engine: sglang; any other program, such as 'docker run', becomes engine: command.

    Exit codes: 0 the file was written; 1 FILE cannot be converted, or the output cannot be written.
    """
    try:
        converted = convert(_read(file), file.name)
    except ConfigError as error:
        _fail(*(f"{file}: {problem}" for problem in error.problems))
    if output is None:
        typer.echo(converted.text, nl=False)
    else:
        _write(output, converted.text)
    _summarize(file, converted, output)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as source:
            content = source.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        _fail(f"{file}: cannot be read: {error.strerror}")
    if len(content) > FILE_BYTES_MAX:
        _fail(f"{file}: is larger than {FILE_BYTES_MAX} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _fail(f"{file}: line {line}: this is not UTF-8 (save the file as UTF-8)")


def _write(output: Path, text: str) -> None:
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _fail(f"{output}: exists already (name another file, or remove it)")
    except OSError as error:
        _fail(f"{output}: cannot be written: {error.strerror}")


def _fail(*messages: str) -> NoReturn:
    for message in messages:
        typer.echo(message, err=True)
    raise typer.Exit(1) from None


def _summarize(file: Path, converted: Converted, output: Path | None) -> None:
    models = converted.draft.models.values()
    engines = Counter(model.engine for model in models if model.is_usable)
    by_engine = ", ".join(f"{count} {engine}" for engine, count in engines.items()) or "none"
    typer.echo(f"{file}: {converted.kind.value}; models: {by_engine}", err=True)
    if unusable := [name for name, model in converted.draft.models.items() if not model.is_usable]:
        typer.echo(f"Only as a comment: {', '.join(unusable)}", err=True)
    typer.echo("Not carried over as it was (each has a comment in the file):", err=True)
    for remark in converted.remarks():
        typer.echo(f"  {remark}", err=True)
    if output is not None:
        typer.echo(f"Written: {output}. Next: llmux check -c {output}", err=True)
