"""Turns pydantic's errors into problems with a path, a plain sentence and a remedy."""

import json
from collections.abc import Iterable, Iterator, Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmux.config.fields import Substituted
from llmux.config.position import Path
from llmux.config.remedies import remedy, shown
from llmux.errors import Problem

_SENTENCES = {
    "missing": "the key is required and missing",
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "tuple_type": "must be a list",
    "string_type": "must be a text",
    "path_type": "must be a text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_pattern_mismatch": "the name of a variable must neither be empty nor contain '='",
    "string_unicode": "contains what is no Unicode character",
    "byte_size": "must be a size with a unit, as 20GiB or 300MB, or a number of bytes",
    "byte_size_unit": "must be a size with a unit, as 20GiB or 300MB, or a number of bytes",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}

_NEEDS_A_MAPPING = ("missing", "model_type", "dict_type", "tuple_type")
"""Whether it is absent or of another type, an example of the right one says more."""


def dotted(path: Iterable[str | int]) -> str:
    """The path in the form that messages use, such as ``models.llama.eviction.weights``."""
    return ".".join(shown(part) for part in path)


def location(error: ErrorDetails) -> Path:
    """Where the error is. Pydantic appends ``[key]`` when a mapping's key itself is invalid."""
    path = error["loc"]
    return path[:-1] if path[-1:] == ("[key]",) else path


def problems_of(
    error: ValidationError, root: type[BaseModel], data: object, written: Mapping[Path, str] | None = None
) -> tuple[Problem, ...]:
    """All problems of a failed validation. ``written`` maps a path to the old key that the file contains instead."""
    return tuple(_problems_of(error, root, data, written or {}))


def _problems_of(
    error: ValidationError, root: type[BaseModel], data: object, written: Mapping[Path, str]
) -> Iterator[Problem]:
    for details in error.errors(include_url=False):
        path = location(details)
        shown = dotted(
            written.get(path[: index + 1], part) if isinstance(part, str) else part for index, part in enumerate(path)
        )
        yield Problem(shown, _sentence(details), remedy(details, root))


def _sentence(details: ErrorDetails) -> str:
    match details["type"]:
        case "extra_forbidden":
            return "unknown key"
        case kind if details["input"] is None and kind not in _NEEDS_A_MAPPING:
            return "has no value"
        case "enum":
            return f"must be {details['ctx']['expected']}, not {_value(details['input'])}"
        case kind if kind in _SENTENCES:
            return _SENTENCES[kind]
        case _:
            return details["msg"].replace("Input should", "must").replace("String should", "must")


def _value(value: object) -> str:
    """The value as the file has it: never what came from the environment."""
    match value:
        case Substituted():
            text = value.written
        case None | bool():
            text = json.dumps(value)
        case _:
            text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
