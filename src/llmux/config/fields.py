"""The types of settings. They are strict: ``port: "3000"`` and ``warmup: yes`` are reported instead of converted."""

import re
import shlex
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A mapping in the file: immutable, and without unknown keys.

    Errors hide the input, since it may be a secret.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class WrittenFloat(float):
    """A float that remembers its spelling: as an engine's argument, ``1.10`` must not become ``1.1``."""

    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number


class Substituted(str):
    """A text that contains a value from the environment: it may stand for a number, since variables are texts.

    ``written`` is the text as the file has it, for messages.
    """

    written: str

    def __new__(cls, text: str, written: str) -> "Substituted":
        value = super().__new__(cls, text)
        value.written = written
        return value


class Notation(Enum):
    """How a text is read, beyond the variables that are replaced in every text."""

    PATH = auto()
    """``~`` at its beginning is a home directory."""
    WORD = auto()
    """``~/`` is a home directory at its beginning and after ``=`` and ``:``."""
    SECRET = auto()
    """A key: a variable is the whole of it, and it never appears in a message."""


_NUMBER = re.compile(r"-?(?:[0-9]{1,18}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})(?:[eE][-+]?[0-9]{1,3})?")
"""Of no more digits than any setting can need."""


def as_scalar(value: object) -> object:
    """The number, ``true`` or ``false`` that a text from the environment stands for. All else unchanged."""
    if not isinstance(value, Substituted):
        return value
    text = value.strip()
    if text in ("true", "false"):
        return text == "true"
    if not _NUMBER.fullmatch(text):
        return value
    return int(text) if re.fullmatch("-?[0-9]+", text) else float(text)


def _as_written(value: object) -> object:
    """A number's text, where a word of a command line or an environment variable is expected."""
    match value:
        case bool():
            return value
        case WrittenFloat():
            return value.text
        case int() | float():
            return str(value)
        case _:
            return value


def _without_nul(value: object) -> object:
    if isinstance(value, str) and "\0" in value:
        raise PydanticCustomError("nul_character", "must not contain a NUL character")
    return value


def _word(value: object) -> object:
    return _as_written(_without_nul(value))


def _directory(value: object) -> object:
    if value == "":
        raise PydanticCustomError("empty_text", "must not be empty")
    return _without_nul(value)


def _key(value: object) -> object:
    """A key that a header can carry. Of a blank at its end, a client's HTTP library would send nothing."""
    if not isinstance(value, str) or not value:
        return value
    if value.isspace():
        raise PydanticCustomError("blank_key", "must not be blank")
    if value != value.strip():
        raise PydanticCustomError("blanks_around_key", "must not begin or end with a blank or a line break")
    if value[:7].lower() == "bearer ":
        raise PydanticCustomError("bearer_in_key", "must be the key alone, without the word Bearer")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise PydanticCustomError("control_character", "must not contain line breaks or control characters")
    return value


_SCALAR = BeforeValidator(as_scalar)

Flag = Annotated[bool, Field(strict=True), _SCALAR]
Text = Annotated[str, Field(strict=True, min_length=1), BeforeValidator(_without_nul)]
PathText = Annotated[Text, Notation.PATH]
"""A path, or what may be one: a program, or the weights of a model."""
Secret = Annotated[SecretStr, Field(min_length=1), BeforeValidator(_key), Notation.SECRET]
Directory = Annotated[Path, BeforeValidator(_directory), Notation.PATH]

Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), _SCALAR]
PositiveSeconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), _SCALAR]
Factor = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), _SCALAR]
PositiveFactor = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), _SCALAR]
Share = Annotated[float, Field(strict=True, gt=0, lt=1), _SCALAR]
Size = Annotated[int, Field(strict=True, ge=0), _SCALAR]
Count = Annotated[int, Field(strict=True, ge=1), _SCALAR]
Port = Annotated[int, Field(strict=True, ge=0, le=65535), _SCALAR]
EnginePort = Annotated[int, Field(strict=True, ge=1, le=65535), _SCALAR]

_WORD_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "number"}]}
Word = Annotated[str, Field(strict=True), BeforeValidator(_word), WithJsonSchema(_WORD_SCHEMA), Notation.WORD]


def _command_line(value: object) -> object:
    """Split a command line into words as a shell does; a list is taken as it is."""
    if not isinstance(value, str):
        return value
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise PydanticCustomError(
            "command_line", "cannot be split into words: {reason}", {"reason": str(error)}
        ) from None
    if not words:
        raise PydanticCustomError("empty_text", "must not be empty")
    return words


CommandLine = Annotated[
    tuple[Word, ...],
    BeforeValidator(_command_line),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": _WORD_SCHEMA}]}),
    Notation.WORD,
]
"""The words of a command, written as one text or as a list; no shell runs it."""

_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^[0-9.]+ *[KMGTkmgt]?[Ii]?[Bb]$"}]
}


_NO_SIZE = "must be a size with a unit, as 20GiB or 300MB, or a number of bytes"


def _size(value: object) -> object:
    if isinstance(value, bool | float) or value is None or (isinstance(value, str) and value.strip().isdigit()):
        raise PydanticCustomError("size", _NO_SIZE)
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9.]+) *([kmgtKMGT])", value.strip())):
        # Some programs mean powers of 1000 by it, others those of 1024.
        number, unit = match[1], match[2].upper()
        text = "has an ambiguous unit: write {number}{unit}iB, or {number}{unit}B for powers of 1000"
        raise PydanticCustomError("ambiguous_size", text, {"number": number, "unit": unit})
    return value


Bytes = Annotated[
    ByteSize,
    Field(gt=0),
    WithJsonSchema(_SIZE_SCHEMA),
    BeforeValidator(_size),
    _SCALAR,
]
"""Bytes, written as a whole number of them or with a unit: ``300MiB``, ``20 GiB``, ``24GB``."""


def _gpu_choice(value: object) -> object:
    """Positions of GPUs, or how many of them; raises PydanticCustomError."""
    value = as_scalar(value)
    if isinstance(value, list | tuple):
        positions = tuple(as_scalar(position) for position in value)
        are_positions = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in positions)
        if positions and are_positions and len(set(positions)) == len(positions):
            return positions
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise PydanticCustomError(
        "gpu_choice", "must be how many GPUs it needs, or a list of their positions, as [0] or [0, 1]"
    )


GpuChoice = Annotated[
    int | tuple[int, ...],
    PlainValidator(_gpu_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0},
                    "minItems": 1,
                    "uniqueItems": True,
                },
            ]
        }
    ),
]
"""How many GPUs, whichever they are, or the positions of certain ones."""
VariableName = Annotated[str, Field(strict=True, pattern=r"^[^=\x00]+$")]
