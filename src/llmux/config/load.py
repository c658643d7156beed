"""The one way from a file to settings: parse, translate old keys, fetch secrets, validate, check."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from llmux.config import checks, legacy
from llmux.config.edit import found, removed, replaced
from llmux.config.environment import substitute
from llmux.config.parse import parse
from llmux.config.problems import Path, location, problems_of
from llmux.config.settings import Settings
from llmux.errors import ConfigError, Problem

FILE_BYTES_MAX = 4 << 20
_STAND_INS = {"weights": "offload", "process": "stop"} | dict.fromkeys(
    ("model_path", "endpoint", "bucket", "access_key", "secret_key"), "unknown"
)
"""Values for wrong or missing required keys that no check objects to, to look at the rest of the file."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings that can be used, and what the user should know about them."""

    settings: Settings
    warnings: tuple[Problem, ...]


def load(path: FilePath, environment: Mapping[str, str] = os.environ) -> Loaded:
    """Read a YAML or JSON file; raises ``ConfigError`` with all of its problems."""
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
    """Read YAML or JSON from a text; raises ``ConfigError`` with all of its problems."""
    parsed = parse(text, source)
    if not isinstance(parsed.data, dict):
        what = "the file is empty" if parsed.data is None else "must be a mapping with the key 'models'"
        raise ConfigError([*parsed.problems, Problem("", what, "see examples/")], source)
    translation = legacy.translate(parsed.data)
    data, secret_problems = substitute(translation.data, environment)
    problems = [*parsed.problems, *translation.problems, *secret_problems]
    settings: Settings | None = None
    invalid: tuple[Problem, ...] = ()
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        invalid = problems_of(error, Settings, data, translation.written)
        problems += invalid
        settings = _what_is_right(data, error)
    if settings is not None:
        problems += _elsewhere(checks.problems(settings), {problem.path for problem in invalid})
    if problems or settings is None:
        raise ConfigError(problems, source)
    return Loaded(settings, (*translation.warnings, *checks.warnings(settings)))


def _what_is_right(data: dict[str, Any], error: ValidationError) -> Settings | None:
    """The settings without their wrong values, so that the checks across keys can still be made; None if too little."""
    for details in error.errors(include_url=False):
        data = _without(data, location(details))
    try:
        return Settings.model_validate(data)
    except ValidationError:
        return None


def _without(data: Any, path: Path) -> Any:
    if path[:-1] and found(data, path[:-1]) is None:  # inside a value that an earlier error has removed
        return data
    if path[-1] in _STAND_INS:
        return replaced(data, path, _STAND_INS[str(path[-1])])
    if isinstance(path[-1], int):
        return replaced(data, path, "unknown")
    return removed(data, path)


def _elsewhere(found_by_checks: Iterator[Problem], invalid: set[str]) -> Iterator[Problem]:
    """Leave out what a check says about a value that was left out because it is invalid."""
    for problem in found_by_checks:
        if not any(f"{problem.path}.".startswith(f"{path}.") for path in invalid):
            yield problem


def with_overrides(settings: Settings, *, host: str | None = None, port: int | None = None) -> Settings:
    """The settings with a command line's host and port; raises ``ConfigError`` if they are wrong or taken."""
    given = {"host": host, "port": port}
    data: dict[str, Any] = dict(settings) | {key: value for key, value in given.items() if value is not None}
    try:
        changed = Settings.model_validate(data)
    except ValidationError as error:
        raise ConfigError(problems_of(error, Settings, data), "command line") from None
    if problems := tuple(checks.ports(changed)):
        raise ConfigError(problems, "command line")
    return changed
