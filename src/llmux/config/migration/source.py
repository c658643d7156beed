"""A YAML file of another program: its data, and the line of each key for messages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from llmux.config.parse import parse
from llmux.config.position import Path
from llmux.config.problems import dotted
from llmux.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class YamlSource:
    """The content of a YAML file whose top is a mapping."""

    name: str
    data: Mapping[str, Any]
    lines: Mapping[Path, int]

    def wrong(self, path: Path, message: str, remedy: str = "") -> ConfigError:
        """The error about a value, with its line; of a key that was merged from elsewhere, the line of its section."""
        known = next((path[:length] for length in range(len(path), 0, -1) if path[:length] in self.lines), ())
        line = f"line {self.lines[known]}: " if known else ""
        return ConfigError([Problem(dotted(path), f"{line}{message}", remedy)], self.name)

    def mapping(self, value: object, path: Path) -> Mapping[str, Any]:
        """The value if it is a mapping; an absent one is empty. Raises ConfigError."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(path, "must be a mapping of keys to values")
        return value

    def texts(self, value: object, path: Path) -> tuple[str, ...]:
        """The items of a list of texts; an absent one is empty. Raises ConfigError."""
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str | int | float) for item in value):
            raise self.wrong(path, "must be a list of texts")
        return tuple(map(plain, value))


def plain(value: object) -> str:
    """A scalar as text, in the spelling of the file."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(getattr(value, "text", value))


def read_yaml(text: str, name: str) -> YamlSource:
    """Read a file. Raises ConfigError with line and column if it is no YAML, has a key twice, or is no mapping."""
    parsed = parse(text, name)
    if parsed.problems:
        raise ConfigError(parsed.problems, name)
    if not isinstance(parsed.data, dict):
        what = "the file is empty" if parsed.data is None else "the file is no mapping of keys to values"
        raise ConfigError([Problem("", what)], name)
    try:
        lines = dict(_lines(yaml.compose(text, Loader=yaml.SafeLoader), (), set()))
    except yaml.YAMLError:  # JSON with tabs, which parse reads as JSON.
        lines = {}
    return YamlSource(name, parsed.data, lines)


def _lines(node: yaml.Node | None, path: Path, seen: set[int]) -> Iterator[tuple[Path, int]]:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield (*path, key.value), key.start_mark.line + 1
                yield from _lines(value, (*path, key.value), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), item.start_mark.line + 1
            yield from _lines(item, (*path, index), seen)
