"""llama-swap's macros: ``${name}`` in a text, from the file's section and from the model's, which overrides it."""

import re
from typing import TypeAlias

from llmux.config.migration import words
from llmux.config.migration.source import YamlSource, plain
from llmux.config.position import Path

TEXT_MAX = 100_000
"""Characters of an expanded text. Macros that double each other would grow without end."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,63}", re.ASCII)
_REFERENCE = re.compile(r"\$\{([a-zA-Z0-9_-]+)\}", re.ASCII)
_RESERVED = ("PORT", "PID", "MODEL_ID")

Macros: TypeAlias = dict[str, str]
"""Texts by name, in the order of their definition: a macro may refer to those before it."""


def read_macros(source: YamlSource, path: Path, value: object) -> Macros:
    """The macros of a section. Raises ConfigError. Those that are mappings serve keys that are not carried over."""
    found: Macros = {}
    for name, text in source.mapping(value, path).items():
        if not _NAME.fullmatch(name):
            raise source.wrong((*path, name), "a macro's name is up to 63 letters, digits, '-' and '_'", "rename it")
        if name in _RESERVED:
            raise source.wrong((*path, name), "this name belongs to llama-swap", "rename the macro")
        if isinstance(text, dict):
            continue
        if not isinstance(text, str | int | float):
            raise source.wrong((*path, name), "a macro's value is a text, a number, true or false")
        if f"${{{name}}}" in plain(text):
            raise source.wrong((*path, name), "the macro contains itself", "remove it from its own value")
        found[name] = plain(text)
    return found


def expand(text: str, macros: Macros, source: YamlSource, path: Path) -> str:
    """The text with the last macro replaced first, and ``${PORT}`` marked. Raises ConfigError if it grows too long."""
    for name, value in reversed(macros.items()):
        text = text.replace(f"${{{name}}}", value)
        if len(text) > TEXT_MAX:
            raise source.wrong(path, f"with its macros it is longer than {TEXT_MAX} characters")
    return text.replace("${PORT}", words.PORT)


def unknown(text: str) -> str | None:
    """A macro that nothing has replaced. ``${PID}`` is replaced when a command runs."""
    return next((name for name in _REFERENCE.findall(text) if name != "PID"), None)
