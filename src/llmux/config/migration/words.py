"""Command lines as words, and texts in which an environment variable or the engine's port is still open.

While a file is being converted, such a place is one private character (or a name between two), so that it is neither
taken for a macro nor escaped. ``written`` turns it into llmux's ``${NAME}`` and ``{port}``.
"""

import re
import shlex
from collections.abc import Iterable, Sequence

PORT = "\ue000"
_VARIABLE_BEGINS, _VARIABLE_ENDS = "\ue001", "\ue002"
PLACEHOLDERS = ("{port}", "{model}", "{name}")
"""What llmux replaces in the commands of an engine."""
RESERVED_CHARACTERS = (PORT, _VARIABLE_BEGINS, _VARIABLE_ENDS)

_VARIABLE = re.compile(rf"{_VARIABLE_BEGINS}([A-Za-z_][A-Za-z0-9_]*){_VARIABLE_ENDS}")
_DOLLAR = re.compile(rf"\$(?=[{{${_VARIABLE_BEGINS}]|[A-Z][A-Z0-9_]{{2}})|(?<=\$)\$|^\$")
"""Where llmux's loader would not take a ``$`` for itself."""
_PLAIN_WORD = re.compile(rf"[\w@%+=:,./~^\[\]{{}}${''.join(RESERVED_CHARACTERS)}-]+", re.ASCII)


def variable(name: str) -> str:
    """A reference to a variable of the environment."""
    return f"{_VARIABLE_BEGINS}{name}{_VARIABLE_ENDS}"


def is_variable(text: str) -> bool:
    """Whether the text is one reference and nothing else."""
    return _VARIABLE.fullmatch(text) is not None


def has_variable(text: str) -> bool:
    """Whether there is a reference in the text."""
    return _VARIABLE.search(text) is not None


def written(text: str) -> str:
    """The text as it stands in llmux's file: references as ``${NAME}``, every other ``$`` so that it stays one."""
    escaped = _DOLLAR.sub("$$", text)
    return _VARIABLE.sub(r"${\1}", escaped).replace(PORT, "{port}")


def shown(text: str) -> str:
    """The text as the reader of the source knows it, for comments."""
    return _VARIABLE.sub(r"${env.\1}", text).replace(PORT, "${PORT}")


def split(command: str) -> tuple[str, ...]:
    """The words of a command of several lines: a backslash at a line's end and lines of comments are left out.

    Raises ValueError with a message for the user if a quote is not closed.
    """
    lines = without_comments(command).split("\n")
    continued = (f"{line.rstrip()[:-1]} " if line.rstrip().endswith("\\") else line for line in lines)
    try:
        return tuple(shlex.split("\n".join(continued)))
    except ValueError:
        raise ValueError("a quote is not closed, or a backslash stands at the end") from None


def without_comments(command: str) -> str:
    """The command without its lines that are comments: what they contain is no macro."""
    return "\n".join(line for line in command.split("\n") if not line.strip().startswith("#"))


def joined(words: Iterable[str]) -> str:
    """One text that is split into these words again."""
    return " ".join(word if _PLAIN_WORD.fullmatch(word) else shlex.quote(word) for word in words)


def program(words: Sequence[str]) -> str:
    """The program's name without its directory."""
    return words[0].rpartition("/")[2] if words else ""
