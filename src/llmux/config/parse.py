"""From text to plain data, for YAML and JSON alike; a key given twice is a problem.

YAML is read with JSON's scalars, so that a value means the same in both: ``no``, ``010``, ``12:30`` and ``2024-01-01``
are strings, and keys are always strings. Text that looks like JSON goes to the JSON parser first, because YAML refuses
tabs and surrogate pairs, which JSON allows.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from llmux.config.fields import WrittenFloat
from llmux.config.position import Path
from llmux.config.problems import dotted
from llmux.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Parsed:
    """The content as dicts, lists and scalars. A key given twice has its last value, and is reported as a problem."""

    data: object
    problems: tuple[Problem, ...]


def parse(text: str, source: str) -> Parsed:
    """Read YAML or JSON. Raises ConfigError with line and column if the text is neither."""
    looks_like_json = text.lstrip()[:1] == "{"
    try:
        if not looks_like_json:
            return _parse_yaml(text)
        try:
            return _parse_json(text)
        except ValueError as error:
            return _parse_yaml_instead(text, source, error)
    except yaml.YAMLError as error:
        raise ConfigError([_yaml_problem(error)], source) from None
    except RecursionError:
        raise ConfigError([Problem("", "the file is nested too deeply")], source) from None
    except ValueError as error:
        raise ConfigError([Problem("", f"the file cannot be read: {error}")], source) from None


def _parse_yaml_instead(text: str, source: str, error: ValueError) -> Parsed:
    try:
        return _parse_yaml(text)
    except yaml.YAMLError:
        if source.endswith(".json") and isinstance(error, json.JSONDecodeError):
            message = f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
            raise ConfigError([Problem("", message, "correct the text there")], source) from None
        raise


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were repeated."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.repeated = [key for key in self if keys.count(key) > 1] if len(keys) > len(self) else []


def _parse_json(text: str) -> Parsed:
    data = json.loads(text, object_pairs_hook=_Object, parse_float=WrittenFloat, parse_constant=str)
    return Parsed(data, tuple(_repeated_in_json(data, ())))


def _repeated_in_json(value: object, path: Path) -> Iterator[Problem]:
    if isinstance(value, _Object):
        yield from (_repeated((*path, key), "") for key in value.repeated)
        for key, item in value.items():
            yield from _repeated_in_json(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _repeated_in_json(item, (*path, index))


class _JsonScalars(SafeConstructor, Resolver):
    """What SafeLoader makes of nodes, but with JSON's scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - yaml's own attribute

    def __init__(self) -> None:
        SafeConstructor.__init__(self)
        Resolver.__init__(self)


_DIGITS = "-0123456789."
_TAG = "tag:yaml.org,2002:"
_JsonScalars.add_implicit_resolver(f"{_TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$"), [*"~nN", ""])
_JsonScalars.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"])
_JsonScalars.add_implicit_resolver(f"{_TAG}int", re.compile(r"^-?(?:0|[1-9][0-9]*)$"), [*_DIGITS])
_JsonScalars.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"^-?(?:(?:0|[1-9][0-9]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?|(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+)$"),
    [*_DIGITS],
)
_JsonScalars.add_implicit_resolver(f"{_TAG}merge", re.compile(r"^<<$"), ["<"])


def _written_float(constructor: _JsonScalars, node: yaml.ScalarNode) -> float:
    return WrittenFloat(str(constructor.construct_scalar(node)))


_JsonScalars.add_constructor(f"{_TAG}float", _written_float)  # type: ignore[type-var] # of a part of a loader


class _PythonLoader(Reader, Scanner, Parser, Composer, _JsonScalars):
    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _JsonScalars.__init__(self)


if yaml.__with_libyaml__:
    from yaml._yaml import CParser

    class _NativeLoader(Composer, CParser, _JsonScalars):
        """Composes libyaml's events in Python, so that a file that is nested too deeply is a RecursionError."""

        def __init__(self, text: str) -> None:
            CParser.__init__(self, text)
            Composer.__init__(self)
            _JsonScalars.__init__(self)


_READ_OTHERWISE = re.compile(r"[\t?!%\ufeff]|[|>][-+0-9]*#")
"""What libyaml accepts in some places where PyYAML refuses it: tabs, marks of keys, tags, directives, and comments that
follow a block's header without a blank. Random changes of configurations have shown nothing else."""


def _parse_yaml(text: str) -> Parsed:
    # libyaml takes a quarter of the time: with a hundred models, that saves a twentieth of a start.
    if yaml.__with_libyaml__ and not _READ_OTHERWISE.search(text):
        try:
            return _parse_with(_NativeLoader(text))
        except (yaml.YAMLError, UnicodeError):
            pass  # PyYAML says better what is wrong, and where.
    return _parse_with(_PythonLoader(text))


def _parse_with(loader: "_PythonLoader | _NativeLoader") -> Parsed:
    try:
        node = loader.get_single_node()
        if node is None:
            return Parsed(None, ())
        problems = tuple(_check_keys(node, (), set()))
        return Parsed(loader.construct_document(node), problems)
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, path: Path, seen: set[int]) -> Iterator[Problem]:
    """Turn every key into a string and report repeated ones. A node with several aliases is visited once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _check_keys(item, (*path, index), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
            line = key.start_mark.line + 1
            if key.value in lines:
                yield _repeated((*path, key.value), f" (lines {lines[key.value]} and {line})")
            lines[key.value] = line
            yield from _check_keys(item, (*path, key.value), seen)


def _repeated(path: Path, where: str) -> Problem:
    return Problem(dotted(path), f"the key is given twice{where}", "keep one of them")


def _yaml_problem(error: yaml.YAMLError) -> Problem:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return Problem("", f"not YAML: {' '.join(str(error).split())}")
    mark = error.problem_mark
    what = "; ".join(part for part in (error.context, error.problem) if part)
    remedy = "indent with spaces" if "'\\t'" in what else "correct the text there"
    if "${" in (mark.get_snippet() or ""):
        remedy = "put ${NAME} into quotes there"
    return Problem("", f"not YAML at line {mark.line + 1}, column {mark.column + 1}: {what}", remedy)
