"""Looking at plain data by path, and copies of it with one thing changed (YAML aliases share what they name)."""

from typing import Any

from llmux.config.problems import Path


def found(data: object, path: Path) -> object:
    """What is at the path; None where nothing is."""
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
    """A copy with the value at the path, whose parents must exist."""
    copy = data.copy()
    copy[path[0]] = replaced(data[path[0]], path[1:], value) if path[1:] else value
    return copy


def removed(data: Any, path: Path) -> Any:
    """A copy without the key at the path, whose parents must exist."""
    copy = data.copy()
    if path[1:]:
        copy[path[0]] = removed(data[path[0]], path[1:])
    else:
        copy.pop(path[0], None)
    return copy
