"""Secrets that the file takes from the environment: a value that is ``${NAME}`` as a whole."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmux.config.edit import found, replaced
from llmux.config.problems import Path, dotted
from llmux.errors import Problem

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
UNKNOWN = "unknown"
"""Stands for a secret that could not be found, so that its absence is one problem and not two."""


def substitute(data: dict[str, Any], environment: Mapping[str, str]) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """Put the environment's values in; a variable that is not set or empty is a problem."""
    problems = []
    for path in tuple(_secrets(data)):
        written = found(data, path)
        if not isinstance(written, str) or not written.startswith("${"):
            continue
        reference = _REFERENCE.fullmatch(written)
        secret = environment.get(reference[1], "") if reference else ""
        if reference is None:
            problems.append(
                Problem(dotted(path), "begins with ${ but is not ${NAME}", "write ${NAME} and nothing else")
            )
        elif not secret:
            problems.append(
                Problem(dotted(path), f"the environment variable {reference[1]} is not set", f"set {reference[1]}")
            )
        data = replaced(data, path, secret or UNKNOWN)
    return data, tuple(problems)


def _secrets(data: Mapping[str, Any]) -> Iterator[Path]:
    yield ("admin_key",)
    for name in ("api_keys", "batch_api_keys"):
        keys = data.get(name)
        if isinstance(keys, list):
            yield from ((name, index) for index in range(len(keys)))
    yield ("checkpoint", "object_store", "access_key")
    yield ("checkpoint", "object_store", "secret_key")
