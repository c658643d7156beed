"""Changes one value in a configuration file and nothing else: comments, order, layout and variables stay."""

import os
import re
import tempfile
from pathlib import Path

import yaml

from llmux.config.load import value_at
from llmux.config.parse import parse
from llmux.core.eviction import Eviction
from llmux.errors import LlmuxError

KEY = "eviction"
OLD_KEY = "sleep_level"
"""0.7.7's and older: it is replaced."""
NOTE = "picked by llmux validate"
"""How the comment begins that a change leaves above the key, and by which the next one finds it."""


class EditRefused(LlmuxError):
    """The file cannot be changed without changing more of it than is meant."""

    def __init__(self, file: Path, reason: str, eviction: Eviction) -> None:
        super().__init__(f"{file} is not changed: {reason}; write 'eviction: {eviction}' by hand")


def with_eviction(text: str, file: Path, model: str, eviction: Eviction, note: str) -> str:
    """The text with a model's eviction set, and in YAML with the note as a comment; raises EditRefused, ConfigError."""
    line_end = "\r\n" if "\r\n" in text else "\n"
    lines = text.replace("\r\n", "\n")
    if lines.replace("\n", line_end) != text:
        raise EditRefused(file, "its lines end in two ways", eviction)
    return _with_eviction(lines, file, model, eviction, note).replace("\n", line_end)


def read_file(file: Path) -> str:
    """The text as it is, line ends included; raises OSError and UnicodeDecodeError."""
    return file.read_bytes().decode()


def _with_eviction(text: str, file: Path, model: str, eviction: Eviction, note: str) -> str:
    before = parse(text, str(file)).data
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        # JSON with tabs, or with pairs of surrogates, is no YAML.
        raise EditRefused(file, "its layout is not understood", eviction) from None
    node = _find(root, ("models", model))
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise EditRefused(file, f"the section of '{model}' is not understood", eviction)
    changed = _Edit(text, node).set(eviction, note)
    after = parse(changed, str(file)).data
    if _without_eviction(after, model) != _without_eviction(before, model) or _eviction_in(after, model) != eviction:
        # For instance an alias or an anchor, whose text stands for another model, too.
        raise EditRefused(file, f"the section of '{model}' is shared, or laid out in an unusual way", eviction)
    return changed


def replace_file(file: Path, text: str, expected: str) -> None:
    """Write the text in place of the file's ``expected`` one, at once and with its owner and mode; raises OSError.

    Raises FileChanged if the file has another content by now.
    """
    file = file.resolve()
    if file.read_bytes() != expected.encode():
        raise FileChanged(file)
    status = file.stat()
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as draft:
            draft.write(text.encode())
            draft.flush()
            os.fsync(draft.fileno())
        Path(name).chmod(status.st_mode & 0o7777)
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(name, status.st_uid, status.st_gid)
        Path(name).rename(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class FileChanged(LlmuxError):
    """Somebody has changed the file since it was read."""

    def __init__(self, file: Path) -> None:
        super().__init__(f"{file} was changed meanwhile, and is left alone: run the command again")


class _Edit:
    """The text of a file and the section of one model in it."""

    def __init__(self, text: str, section: yaml.MappingNode) -> None:
        self._text = text
        self._section = section
        first: yaml.Node = section.value[0][0]
        self._is_json = first.start_mark.index < len(text) and text[first.start_mark.index] == '"'

    def set(self, eviction: Eviction, note: str) -> str:
        value = f'"{eviction}"' if self._is_json else str(eviction)
        for key, present in self._section.value:
            if key.value in (KEY, OLD_KEY):
                name = f'"{KEY}"' if self._is_json else KEY
                start, end = key.start_mark.index, _end_of(present)
                return self._noted(start, end, f"{name}: {value}", note)
        first: yaml.Node = self._section.value[0][0]
        start = first.start_mark.index
        if not self._section.flow_style:
            indent = " " * first.start_mark.column
            return self._noted(start, start, f"{KEY}: {value}\n{indent}", note)
        # What stands between the brace and the first key is repeated after the new one.
        brace = self._section.start_mark.index + 1
        blank = self._text[brace:start]
        name = f'"{KEY}"' if self._is_json else KEY
        return self._text[:brace] + f"{blank}{name}: {value}," + (blank or " ") + self._text[start:]

    def _noted(self, start: int, end: int, replacement: str, note: str) -> str:
        """Replace a part of the text, with a comment on a line of its own above it where comments are possible."""
        before, after = self._text[:start], self._text[end:]
        if self._section.flow_style:
            return before + replacement + after
        indent = before[before.rindex("\n") + 1 :] if "\n" in before else before
        if indent.strip():
            # The key of a sequence's item, or of a mapping within one line.
            return before + replacement + after
        lines = before[: len(before) - len(indent)]
        lines = re.sub(rf"(?m)^[ ]*# {NOTE}[^\n]*\n\Z", "", lines)
        return f"{lines}{indent}# {NOTE}: {note}\n{indent}{replacement}{after}"


def _end_of(node: yaml.Node) -> int:
    """Where the text of a value ends: of a block the end of its last scalar, since the mark is behind what follows."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end_of(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _find(node: yaml.Node | None, path: tuple[str, ...]) -> yaml.Node | None:
    for part in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == part), None)
    return node


def _without_eviction(data: object, model: str) -> object:
    section = value_at(data, ("models", model))
    if not isinstance(data, dict) or not isinstance(section, dict):
        return data
    kept = {key: value for key, value in section.items() if key not in (KEY, OLD_KEY)}
    return {**data, "models": {**data["models"], model: kept}}


def _eviction_in(data: object, model: str) -> Eviction | None:
    value = value_at(data, ("models", model, KEY))
    return Eviction.parse(value) if isinstance(value, str) else None
