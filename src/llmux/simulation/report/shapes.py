"""What our pictures are made of, whoever draws them."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias


class Anchor(StrEnum):
    """Which part of a text is at its place."""

    START = "start"
    MIDDLE = "middle"
    END = "end"


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; ``hint`` is shown where the picture can be pointed at."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Label:
    """A text; ``y`` is its base line."""

    x: float
    y: float
    text: str
    size: float = 11.0
    colour: str = "#24292f"
    anchor: Anchor = Anchor.START


Shape: TypeAlias = Box | Line | Label


@dataclass(slots=True)
class Picture:
    """Shapes on a white ground, in the order in which they are drawn."""

    width: float
    height: float
    shapes: list[Shape] = field(default_factory=list)
