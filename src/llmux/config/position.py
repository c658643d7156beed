"""What the settings expect at a place in the data: which keys there are, and how a text there is read."""

import types
import typing
from functools import cache
from typing import Any, TypeAlias

from pydantic import BaseModel

from llmux.config.fields import Notation

Path: TypeAlias = tuple[str | int, ...]
"""A location in the data: keys and list indexes."""


class Position:
    """One place, however many paths of the data lead there: all models share one, and all items of a list.

    ``notation`` is how a text is read there beyond ``${NAME}``; None if in no other way.
    """

    def __init__(self, annotation: Any) -> None:
        self._type, self.notation = _unwrap(annotation, None)
        self._below: dict[str, Position] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the section that belongs here; empty where none does."""
        return tuple(self._type.model_fields) if _is_section(self._type) else ()

    @property
    def has_free_keys(self) -> bool:
        """Whether a mapping belongs here whose keys the user chooses: names of models or variables."""
        return typing.get_origin(self._type) is dict

    def below(self, part: str | int) -> "Position":
        """The place of a key or an index."""
        if _is_section(self._type):
            hints = _hints(self._type)
            return self._child(str(part), hints[part]) if isinstance(part, str) and part in hints else NOWHERE
        arguments = typing.get_args(self._type)
        if not arguments:
            return NOWHERE
        # dict[str, X] and tuple[X, ...]: the same for every part.
        return self._child("", arguments[-1] if self.has_free_keys else arguments[0])

    def _child(self, name: str, annotation: Any) -> "Position":
        if name not in self._below:
            self._below[name] = Position(annotation)
        return self._below[name]


@cache
def position_of(section: type[BaseModel]) -> Position:
    """The place of a whole section."""
    return Position(section)


@cache
def _hints(section: type[BaseModel]) -> dict[str, Any]:
    return typing.get_type_hints(section, include_extras=True)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _unwrap(annotation: Any, notation: Notation | None) -> tuple[Any, Notation | None]:
    """The type without ``Annotated`` and ``| None``, and the notation that ``Annotated`` carried."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *metadata = typing.get_args(annotation)
        found = next((item for item in metadata if isinstance(item, Notation)), notation)
        return _unwrap(inner, found)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _unwrap(next(part for part in typing.get_args(annotation) if part is not type(None)), notation)
    return annotation, notation


NOWHERE = Position(None)
"""The place of everything that no setting describes."""
