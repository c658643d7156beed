"""From a configuration file to settings: parse, expand variables, translate 0.7.7's keys, validate, check.

Every step collects problems instead of stopping, so that one run of ``llmux check`` reports everything that is wrong.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from llmux.config import checks, legacy, machine
from llmux.config.expansion import expand
from llmux.config.parse import parse
from llmux.config.position import Path
from llmux.config.problems import location, problems_of
from llmux.config.settings import Settings
from llmux.errors import ConfigError, Problem
from llmux.redaction import Redactor

FILE_BYTES_MAX = 4 << 20
"""A configuration of a thousand models is well below 1 MiB; a larger file is the wrong file."""

ANCHOR_PREFIX = "x-"
"""Top-level keys that begin so are ignored, as in compose files: their place is for YAML's anchors."""

_PLACEHOLDER = "unknown"
_PLACEHOLDERS = {"weights": "offload", "process": "stop"} | dict.fromkeys(
    ("model_path", "endpoint", "bucket", "access_key", "secret_key"), _PLACEHOLDER
)
"""Values for required keys that are missing or wrong. They pass all checks, so that the rest of the file is checked."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Valid settings, and warnings about what is valid but probably not meant."""

    settings: Settings
    warnings: tuple[Problem, ...]


def load(path: FilePath, environment: Mapping[str, str] = os.environ) -> Loaded:
    """Read a YAML or JSON file. Raises ConfigError with all of its problems."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(
            [Problem("", "the file does not exist", "name it with -c FILE, or write one as in examples/")], str(path)
        ) from None
    except OSError as error:
        raise ConfigError([Problem("", f"the file cannot be read: {error.strerror}")], str(path)) from None
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError([Problem("", f"the file is larger than {FILE_BYTES_MAX} bytes")], str(path))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the file is not UTF-8: byte {error.start} is wrong"
        raise ConfigError([Problem("", message, "save it as UTF-8")], str(path)) from None
    return loads(text, str(path), environment)


def loads(text: str, source: str = "configuration", environment: Mapping[str, str] = os.environ) -> Loaded:
    """Read YAML or JSON from a string. Raises ConfigError with all of its problems; ``source`` names it in messages."""
    parsed = parse(text, source)
    if not isinstance(parsed.data, dict):
        what = "the file is empty" if parsed.data is None else "must be a mapping with the key 'models'"
        raise ConfigError([*parsed.problems, Problem("", what, "see examples/")], source)
    written = {key: value for key, value in parsed.data.items() if not key.startswith(ANCHOR_PREFIX)}
    expanded = expand(written, Settings, environment)
    translation = legacy.translate(expanded.data)
    data = translation.data
    problems = [*parsed.problems, *expanded.problems, *translation.problems]
    # Of a value that could not be expanded, the validation and the checks see only what the file has.
    unusable = {problem.path for problem in expanded.problems}
    lists = {_list_of(path) for path in unusable}
    settings: Settings | None = None
    try:
        settings = _as_in_077(Settings.model_validate(data), translation)
    except ValidationError as error:
        invalid = problems_of(error, Settings, data, translation.written)
        problems += _not_about(invalid, unusable)
        unusable |= {problem.path for problem in invalid}
        settings = _valid_part(data, error)
    if settings is not None:
        problems += (
            problem
            for problem in _not_about((*checks.problems(settings), *machine.problems(settings)), unusable)
            if problem.path not in lists
        )
    redact = Redactor(expanded.secrets).redact
    if problems or settings is None:
        raise ConfigError([_redacted(problem, redact) for problem in problems], source)
    warnings = (*expanded.warnings, *translation.warnings, *checks.warnings(settings))
    return Loaded(settings, tuple(_redacted(warning, redact) for warning in warnings))


def _list_of(path: str) -> str:
    """The path of the list that the path is an item of: a check of the list as a whole would read what the file has."""
    parent, _, last = path.rpartition(".")
    return parent if parent and last.isdigit() else path


def _redacted(problem: Problem, redact: Callable[[str], str]) -> Problem:
    return Problem(problem.path, redact(problem.message), redact(problem.remedy))


def with_overrides(settings: Settings, *, host: str | None = None, port: int | None = None) -> Settings:
    """The settings with the command line's host and port. Raises ConfigError if one is invalid or the port is taken."""
    given = {"host": host, "port": port}
    data: dict[str, Any] = {key: getattr(settings, key) for key in Settings.model_fields} | {
        key: value for key, value in given.items() if value is not None
    }
    try:
        changed = Settings.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems_of(error, Settings, data), "command line") from None
    if problems := tuple(checks.listeners(changed)):
        raise ConfigError(problems, "command line")
    return changed


def _as_in_077(settings: Settings, translation: legacy.Translation) -> Settings:
    """A file with keys of 0.7.7, where it says nothing else: requests are drained, and one model has all GPUs."""
    if not translation.written:
        return settings
    changes: dict[str, Any] = {}
    if settings.policy.drain_before_switch is None:
        changes["policy"] = settings.policy.model_copy(update={"drain_before_switch": True})
    keys = {key for model in translation.data["models"].values() for key in model} | translation.data.keys()
    if keys.isdisjoint(("gpus", "gpu_memory", "share_gpus")):
        changes["share_gpus"] = False
    return settings.model_copy(update=changes)


def _valid_part(data: dict[str, Any], error: ValidationError) -> Settings | None:
    """The settings without their invalid values, to run the checks across keys on. None if too little is left."""
    for details in error.errors(include_url=False):
        data = _without_invalid(data, location(details))
    try:
        return Settings.model_validate(data)
    except ValidationError:
        return None


def _without_invalid(data: Any, path: Path) -> Any:
    if path[:-1] and value_at(data, path[:-1]) is None:  # Inside a value that an earlier error has removed.
        return data
    if path[-1] in _PLACEHOLDERS:
        return replaced(data, path, _PLACEHOLDERS[str(path[-1])])
    if isinstance(path[-1], int):
        return replaced(data, path, _PLACEHOLDER)
    return removed(data, path)


def _not_about(problems: Iterable[Problem], invalid: set[str]) -> Iterator[Problem]:
    """Drop problems at or below the paths of invalid values: the checks saw a placeholder there."""
    for problem in problems:
        if not any(f"{problem.path}.".startswith(f"{path}.") for path in invalid):
            yield problem


# The data is changed by copying along the path: YAML aliases make several keys share one object.


def value_at(data: object, path: Path) -> object:
    """The value at the path; None where there is none."""
    for part in path:
        match data, part:
            case dict(), _:
                data = data.get(part)
            case list(), int() if part < len(data):
                data = data[part]
            case _:
                return None
    return data


def replaced(data: Any, path: Path, value: object) -> Any:
    """A copy with the value at the path. The path's parents must exist."""
    copy = data.copy()
    copy[path[0]] = replaced(data[path[0]], path[1:], value) if path[1:] else value
    return copy


def removed(data: Any, path: Path) -> Any:
    """A copy without the key at the path. The path's parents must exist."""
    copy = data.copy()
    if path[1:]:
        copy[path[0]] = removed(data[path[0]], path[1:])
    else:
        copy.pop(path[0], None)
    return copy
