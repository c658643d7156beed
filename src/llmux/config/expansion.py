"""``${NAME}``, ``${NAME:-default}``, ``$$`` and ``~`` in the values of a configuration.

Variables come from llmux's own environment and are replaced in every text. ``~`` is replaced where the setting is a
path, an engine's argument or an environment variable (``fields.Notation``). What looks like a variable and is none is a
problem or a warning, never taken literally in silence.
"""

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from llmux.config.fields import Notation, Substituted
from llmux.config.position import NOWHERE, Path, Position, position_of
from llmux.config.problems import dotted
from llmux.errors import Problem
from llmux.redaction import is_secret_name

DEFAULTS_DEPTH_MAX = 8
"""``${A:-${B:-c}}`` is two deep. Unlimited nesting would exhaust the stack."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL = re.compile(r"[$}]")
_USUAL_NAME = re.compile(r"[A-Z][A-Z0-9_]{2,}")
_LEADING_HOME = re.compile(r"^~([^/]*)")
_HOME_IN_WORD = re.compile(r"(?:(?<=[=:])|^)~([A-Za-z_][\w.-]*)?(?=/)")
"""At the beginning and, as in a shell's assignment, after ``=`` and ``:``."""

_LITERAL = "for the character $ itself write $$"


@dataclass(slots=True)
class Expanded:
    """The data with its values replaced. ``secrets`` are values from the environment that no message may contain."""

    data: Any
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)


class _Refused(Exception):
    """A value that cannot be read; the text says why."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def expand(data: Any, root: type[BaseModel], environment: Mapping[str, str]) -> Expanded:
    """Replace variables and ``~`` in all values below ``data``, whose settings ``root`` describes.

    A value with a problem stays as it is.
    """
    return _Expansion(environment).run(data, position_of(root))


class _Expansion:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._result = Expanded(None)
        # YAML's aliases make one object appear on many paths, perhaps inside itself: it is expanded once per position.
        self._done: dict[tuple[int, Position], Any] = {}

    def run(self, data: Any, position: Position) -> Expanded:
        self._result.data = self._value(data, position, ())
        return self._result

    def _value(self, value: Any, position: Position, path: Path) -> Any:
        if isinstance(value, str):
            return self._text(value, position.notation, path)
        if not isinstance(value, dict | list) or position is NOWHERE:
            return value
        known = (id(value), position)
        if known in self._done:
            return self._done[known]
        self._done[known] = value
        if isinstance(value, dict):
            self._check_keys(value, position, path)
            result: Any = {key: self._value(item, position.below(key), (*path, key)) for key, item in value.items()}
        else:
            result = [self._value(item, position.below(index), (*path, index)) for index, item in enumerate(value)]
        self._done[known] = result
        return result

    def _check_keys(self, mapping: Mapping[str, Any], position: Position, path: Path) -> None:
        if position.has_free_keys:
            for key in mapping:
                if "${" in key:
                    message = "${NAME} is replaced in values and not in keys"
                    self._result.problems.append(Problem(dotted((*path, key)), message, "write the key out"))

    def _text(self, text: str, notation: Notation | None, path: Path) -> str:
        try:
            return self._expanded(text, notation, path)
        except _Refused as refused:
            self._result.problems.append(Problem(dotted(path), refused.message, refused.remedy))
            return text

    def _expanded(self, text: str, notation: Notation | None, path: Path) -> str:
        reader = _Reader(text, self._environment)
        value = reader.read()
        if notation is Notation.SECRET:
            _check_secret(reader, value)
        elif reader.missing:
            raise _unset(reader.missing[0], path)
        for bare in reader.bare:
            message, remedy = self._about(bare)
            if bare.at == 0 or notation is Notation.SECRET:
                raise _Refused(message, remedy)
            self._result.warnings.append(Problem(dotted(path), message, remedy))
        if reader.has_doubled:
            self._result.warnings.append(Problem(dotted(path), "$$ is read as one $", "write $$$$ for two, $ for one"))
        for name in reader.used:
            if notation is Notation.SECRET or is_secret_name(name):
                self._result.secrets.add(self._environment[name])
        value = self._with_home(value, notation)
        return Substituted(value, text) if reader.references else value

    def _about(self, bare: "_Bare") -> tuple[str, str]:
        # A name that is not in the environment may be a piece of a password.
        name = bare.name if bare.name in self._environment else "NAME"
        return f"${name} is not replaced", f"write ${{{name}}}; {_LITERAL}"

    def _with_home(self, value: str, notation: Notation | None) -> str:
        match notation:
            case Notation.PATH:
                return _LEADING_HOME.sub(self._home, value)
            case Notation.WORD:
                return _HOME_IN_WORD.sub(self._home, value)
            case _:
                return value

    def _home(self, match: re.Match[str]) -> str:
        user = match[1]
        try:
            if user:
                return pwd.getpwnam(user).pw_dir
            return self._environment.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            whose = f"there is no user {user!r}" if user else "the home directory is unknown: HOME is not set"
            raise _Refused(f"~ cannot be replaced: {whose}", "write the path in full") from None


def _check_secret(reader: "_Reader", value: str) -> None:
    """With text around a reference, a typing error would become part of a key."""
    if reader.references and reader.references != [(0, len(reader.text))]:
        raise _Refused("contains ${ but is not ${NAME} alone", f"write ${{NAME}} and nothing else; {_LITERAL}")
    if reader.missing:
        raise _unset(reader.missing[0], ())
    if reader.references and not value:
        name = reader.names[0]
        raise _Refused(f"the environment variable {name} is empty", f"set {name}")
    if reader.starts_with_dollar:
        raise _Refused("begins with $ but is not ${NAME}", f"write ${{NAME}}; {_LITERAL}")


def _unset(name: str, path: Path) -> _Refused:
    remedy = f"set {name}"
    if path[-2:] == ("env", name):
        remedy += ", or remove the key: engines inherit llmux's environment"
    elif path:
        remedy += f", or write ${{{name}:-DEFAULT}}"
    return _Refused(f"the environment variable {name} is not set", remedy)


@dataclass(frozen=True, slots=True)
class _Bare:
    """``$NAME`` at an index of a text."""

    name: str
    at: int


class _Reader:
    """Reads one text. Raises _Refused where ``${`` begins no variable."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self.text = text
        self.references: list[tuple[int, int]] = []
        """Begin and end of every ``${…}`` that is not inside another one."""
        self.names: list[str] = []
        self.used: list[str] = []
        """The variables whose values are part of the result."""
        self.missing: list[str] = []
        self.bare: list[_Bare] = []
        self.has_doubled = False
        """Whether there is a ``$$`` where a single ``$`` would have done, which may be meant literally."""
        self._environment = environment
        self._at = 0

    @property
    def starts_with_dollar(self) -> bool:
        """Whether the text begins with a ``$`` that is neither a reference nor doubled."""
        return self.text[:1] == "$" and self.text[1:2] not in ("$", "{")

    def read(self) -> str:
        """The text with all variables replaced."""
        if "$" not in self.text:
            return self.text
        return self._read(0)

    def _read(self, depth: int) -> str:
        """Up to the end, inside a default up to its ``}``."""
        parts = []
        while special := _SPECIAL.search(self.text, self._at):
            parts.append(self.text[self._at : special.start()])
            self._at = special.start()
            if special[0] == "$":
                parts.append(self._dollar(depth))
            elif depth:
                return "".join(parts)
            else:
                parts.append("}")
                self._at += 1
        parts.append(self.text[self._at :])
        self._at = len(self.text)
        return "".join(parts)

    def _dollar(self, depth: int) -> str:
        begin = self._at
        match self.text[begin + 1 : begin + 2]:
            case "{":
                value = self._reference(depth)
                if depth == 0:
                    self.references.append((begin, self._at))
                return value
            case "$":
                self._at += 2
                name = _NAME.match(self.text, self._at)
                followed_by = self.text[self._at : self._at + 1]
                is_needed = followed_by in ("{", "$") or begin == 0 or (name is not None and self._is_variable(name[0]))
                is_second = begin >= 2 and self.text[begin - 2 : begin] == "$$"
                self.has_doubled |= not is_needed and not is_second
            case _:
                self._at += 1
                name = _NAME.match(self.text, self._at)
                if name is not None and self._is_variable(name[0]):
                    self.bare.append(_Bare(name[0], begin))
        return "$"

    def _reference(self, depth: int) -> str:
        if depth == DEFAULTS_DEPTH_MAX:
            raise _Refused("${…} is nested too deeply", "give the variable a value of its own")
        name = _NAME.match(self.text, self._at + 2)
        if name is None:
            raise self._malformed()
        self.names.append(name[0])
        self._at = name.end()
        default, missing, used = None, self.missing, self.used
        if self.text.startswith(":-", self._at):
            self._at += 2
            self.missing, self.used = [], []
            default = self._read(depth + 1)
            (default_missing, self.missing), (default_used, self.used) = (self.missing, missing), (self.used, used)
        if not self.text.startswith("}", self._at):
            raise self._malformed()
        self._at += 1
        value = self._environment.get(name[0])
        if default is not None and not value:
            self.missing += default_missing
            self.used += default_used
            return default
        if value is None:
            self.missing.append(name[0])
            return ""
        self.used.append(name[0])
        return value

    def _is_variable(self, name: str) -> bool:
        return name in self._environment or _USUAL_NAME.fullmatch(name) is not None

    def _malformed(self) -> _Refused:
        return _Refused(
            "${ begins no variable",
            "write ${NAME} or ${NAME:-DEFAULT}, or $${ for the characters ${ themselves",
        )
