"""Turns pydantic's errors into problems with a path, a plain sentence and a remedy."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmux.config.fields import Substituted
from llmux.config.position import Position, position_of
from llmux.errors import Problem

Path: TypeAlias = tuple[str | int, ...]
"""A location in the data: keys and list indexes."""

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
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}

_EXAMPLES = {
    "models": "write models: {NAME: {model_path: PATH}}, the name as the key",
    "policy": "write policy: {policy_type: adaptive}",
    "checkpoint": "write checkpoint: {} for its defaults",
    "eviction": "write offload+keep_running, or {weights: offload, process: keep_running}",
    "env": 'write env: {NAME: "value"}',
    "extra_args": 'write a list with one word an item: [--max-model-len, "4096"]',
    "api_keys": 'write a list: ["${NAME}"]',
    "batch_api_keys": 'write a list: ["${NAME}"]',
}
"""The right form of a key for whoever knows another tool's. The user's own value may be a secret."""


def dotted(path: Iterable[str | int]) -> str:
    """The path in the form that messages use, such as ``models.llama.eviction.weights``."""
    return ".".join(_shown(part) for part in path)


def nearest(word: object, allowed: Iterable[str], otherwise: str | None = None) -> str:
    """A remedy: the closest allowed word if one is close, else ``otherwise``, by default all allowed words."""
    words = list(allowed)
    if close := difflib.get_close_matches(str(word), words, n=1, cutoff=0.6):
        return f"did you mean '{close[0]}'?"
    return f"allowed: {', '.join(words)}" if otherwise is None else otherwise


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
        yield Problem(shown, _sentence(details), _remedy(details, root))


def _sentence(details: ErrorDetails) -> str:
    match details["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "enum":
            return f"must be {details['ctx']['expected']}, not {_value(details['input'])}"
        case kind if kind in _SENTENCES:
            return _SENTENCES[kind]
        case _:
            return details["msg"].replace("Input should", "must").replace("String should", "must")


def _remedy(details: ErrorDetails, root: type[BaseModel]) -> str:
    value = details["input"]
    match details["type"]:
        case "extra_forbidden":
            return nearest(details["loc"][-1], _position_at(root, details["loc"][:-1]).keys)
        case "enum":
            expected = [word.strip("' ") for word in details["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            return nearest(value, expected, otherwise="")
        case "sleep_level":
            return "1 offload+keep_running, 2 discard+keep_running, 3 retain+cuda_suspend, 4 discard+checkpoint, 5 stop"
        case "eviction_text":
            return "retain, offload or discard + keep_running, cuda_suspend, checkpoint or stop"
        case _ if isinstance(value, Substituted):
            return f"it comes from {value.written}"
        case "model_type" | "dict_type" | "tuple_type":
            return _example(details["loc"])
        case "string_type" if isinstance(value, bool | int | float):
            return "put it into quotes"
        case "int_type" | "float_type" | "bool_type" if isinstance(value, str):
            return "write it without quotes" if _is_number(value) or value in ("true", "false") else ""
        case "missing":
            return "add it"
        case "too_short" if details["loc"] == ("models",):
            return "add at least one model"
        case _:
            return ""


def _example(path: Path) -> str:
    if len(path) == 2 and path[0] == "models":
        return f"write {_shown(path[1])}: {{model_path: PATH}}"
    return _EXAMPLES.get(str(path[-1]), "")


def _position_at(root: type[BaseModel], path: Path) -> Position:
    position = position_of(root)
    for part in path:
        position = position.below(part)
    return position


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _value(value: object) -> str:
    """The value as the file has it: never what came from the environment."""
    text = value.written if isinstance(value, Substituted) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _shown(part: str | int) -> str:
    text = str(part)
    return text if text and text.isprintable() else ascii(text)
