"""Draws pictures as PNG, with Pillow if it is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from llmux.errors import LlmuxError
from llmux.simulation.report.shapes import Anchor, Box, Label, Line, Picture

SCALE = 2
ANCHORS = {Anchor.START: "ls", Anchor.MIDDLE: "ms", Anchor.END: "rs"}


class PillowMissing(LlmuxError):
    """A PNG was asked for and there is nothing to draw it with."""

    def __init__(self) -> None:
        super().__init__(
            "a PNG needs Pillow, which is not installed: pip install 'llmux-gateway[plot]'; "
            "a .html or .svg file needs nothing"
        )


def require_pillow() -> None:
    """Raises ``PillowMissing``."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise PillowMissing from None


def write_png(file: Path, pictures: Sequence[Picture]) -> None:
    """Draw the pictures one below the other; raises ``PillowMissing``, ``OSError``."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise PillowMissing from None
    size = (max(picture.width for picture in pictures), sum(picture.height for picture in pictures))
    image = Image.new("RGB", (int(size[0] * SCALE), int(size[1] * SCALE)), "#ffffff")
    draw = ImageDraw.Draw(image)
    top = 0.0
    for picture in pictures:
        for shape in picture.shapes:
            match shape:
                case Box(x, y, width, height, colour, _):
                    corner = ((x + width) * SCALE - 1, (y + top + height) * SCALE - 1)
                    draw.rectangle(((x * SCALE, (y + top) * SCALE), corner), fill=colour)
                case Line(points, colour, width):
                    scaled = [(x * SCALE, (y + top) * SCALE) for x, y in points]
                    draw.line(scaled, fill=colour, width=round(width * SCALE))
                case Label(x, y, text, points_high, colour, anchor):
                    font = ImageFont.load_default(points_high * SCALE)
                    place = (x * SCALE, (y + top) * SCALE)
                    draw.text(place, text, fill=colour, font=font, anchor=ANCHORS[anchor])
                case _:
                    assert_never(shape)
        top += picture.height
    image.save(file, "PNG", optimize=True)
