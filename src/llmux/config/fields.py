"""The types of settings. They are strict: ``port: "3000"`` and ``warmup: yes`` are reported instead of converted."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema
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


def _word(value: object) -> object:
    if isinstance(value, str) and "\0" in value:
        raise PydanticCustomError("nul_character", "must not contain a NUL character")
    return _as_written(value)


def _directory(value: object) -> object:
    if value == "":
        raise PydanticCustomError("empty_text", "must not be empty")
    return value


Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1)]
Secret = Annotated[SecretStr, Field(min_length=1)]
Directory = Annotated[Path, BeforeValidator(_directory)]

Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
PositiveFactor = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1)]
Size = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
EnginePort = Annotated[int, Field(strict=True, ge=1, le=65535)]

_WORD_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "number"}]}
Word = Annotated[str, Field(strict=True), BeforeValidator(_word), WithJsonSchema(_WORD_SCHEMA)]
VariableName = Annotated[str, Field(strict=True, pattern=r"^[^=\x00]+$")]
