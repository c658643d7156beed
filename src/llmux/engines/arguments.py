"""Reads an engine's command line as the engine's own parser does, if that is Python's argparse.

``--flag VALUE`` and ``--flag=VALUE`` are equal, ``_`` equals ``-`` in a long flag, and the last occurrence wins.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

KEY_FLAGS = ("--api-key",)
"""Flags of all kinds of engines whose values are secret."""
COMMAND_LINES_KEPT = 1024
"""Of as many command lines is remembered what was read: of every model's."""
_FLAG_AND_MORE = re.compile(r"\s*(--?[A-Za-z][A-Za-z0-9._-]*)\s+(.*)", re.DOTALL)
_SECOND_FLAG = re.compile(r"\s(--[a-z][a-z0-9-]*)(?:[\s=]|$)")


@dataclass(frozen=True, slots=True)
class Option:
    """A flag and its values; it occupies ``arguments[start:end]``."""

    flag: str
    values: tuple[str, ...]
    start: int
    end: int


def options(arguments: Sequence[str]) -> tuple[Option, ...]:
    """All flags in order, each with the words up to the next flag."""
    return _read(tuple(arguments))


@lru_cache(maxsize=COMMAND_LINES_KEPT)
def _read(arguments: tuple[str, ...]) -> tuple[Option, ...]:
    # Kept, because a start asks a hundred times for each model: every check of its configuration, every way to leave.
    return tuple(_read_in_order(arguments))


def _read_in_order(arguments: tuple[str, ...]) -> Iterator[Option]:
    index = 0
    while index < len(arguments):
        word = arguments[index]
        end = index + 1
        if not _is_flag(word):
            index = end
            continue
        flag, equals, attached = word.partition("=")
        while end < len(arguments) and not equals and not _is_flag(arguments[end]):
            end += 1
        values = (attached,) if equals else arguments[index + 1 : end]
        yield Option(_normal(flag), values, index, end)
        index = end


def value(arguments: Sequence[str], flags: Sequence[str]) -> str | None:
    """The flag's value: None if the flag is absent, empty if it has no value."""
    found = None
    for option in options(arguments):
        if option.flag in flags:
            found = option.values[0] if option.values else ""
    return found


def every_value(arguments: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """All values of all occurrences of the flags."""
    return tuple(word for option in options(arguments) if option.flag in flags for word in option.values)


def last_values(arguments: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """All values of the last occurrence of the flags."""
    found: tuple[str, ...] = ()
    for option in options(arguments):
        if option.flag in flags:
            found = option.values
    return found


def number(arguments: Sequence[str], flags: Sequence[str]) -> int | None:
    """The flag's value as a number of at least 1; None if absent. Raises ValueError with a message for the user."""
    text = value(arguments, flags)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and int(text[:18]) >= 1):
        raise ValueError(f"{flags[0]} needs a whole number of at least 1, not {text[:60]!r}")
    return int(text[:18])


def switched_on(arguments: Sequence[str], flag: str) -> bool:
    """Whether a flag without value is set and not reset by a later ``--no-`` form."""
    negation = f"--no-{flag.removeprefix('--')}"
    on = False
    for option in options(arguments):
        if option.flag in (flag, negation):
            on = option.flag == flag
    return on


def present(arguments: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """Those of the flags that occur, in the order of ``flags``."""
    found = {option.flag for option in options(arguments)}
    return tuple(flag for flag in flags if flag in found)


def without(arguments: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """The command line without these flags and their values."""
    dropped: set[int] = set()
    for option in options(arguments):
        if option.flag in flags:
            dropped.update(range(option.start, option.end))
    return tuple(word for index, word in enumerate(arguments) if index not in dropped)


def abbreviated(arguments: Sequence[str], flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags that argparse would complete to one of ``flags``, each with what it would become."""
    for option in options(arguments):
        if option.flag.startswith("--") and len(option.flag) > 2:
            for flag in flags:
                if flag != option.flag and flag.startswith(option.flag):
                    yield option.flag, flag


def flag_with_more(word: str) -> tuple[str, str] | None:
    """The flag and the rest of a word that contains a blank between them, which no parser takes apart."""
    match = _FLAG_AND_MORE.fullmatch(word)
    return (match[1], match[2].strip()) if match else None


def second_flag(word: str) -> str | None:
    """The flag that the value of ``--flag=VALUE`` contains, as if two arguments had been written into one."""
    match = _SECOND_FLAG.search(word) if _is_flag(word) and "=" in word else None
    return match[1] if match else None


def _is_flag(word: str) -> bool:
    # As in argparse, a negative number is a value.
    return word.startswith("-") and len(word) > 1 and not word[1].isdigit() and not word.startswith("-.")


def _normal(flag: str) -> str:
    return flag.replace("_", "-") if flag.startswith("--") else flag
