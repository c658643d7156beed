"""Writes a report's pictures into files, by the files' suffixes."""

from collections.abc import Sequence
from pathlib import Path

from llmux.errors import LlmuxError
from llmux.simulation.report.figures import LowerBound, RunFigures
from llmux.simulation.report.raster import require_pillow, write_png
from llmux.simulation.report.shapes import Picture
from llmux.simulation.report.vector import html

SUFFIXES = (".png", ".html")


class PlotFailed(LlmuxError):
    """A picture could not be written."""


def check_plot_file(file: Path) -> None:
    """Raises ``PlotFailed`` or ``PillowMissing`` for what cannot be written, before the work is done."""
    if file.suffix.lower() not in SUFFIXES:
        raise PlotFailed(f"{file}: the picture is written by the file's suffix, which must be {' or '.join(SUFFIXES)}")
    if not file.parent.is_dir():
        raise PlotFailed(f"{file}: the directory {file.parent} does not exist")
    if file.suffix.lower() == ".png":
        require_pillow()


def write_plot(
    file: Path,
    title: str,
    facts: Sequence[str],
    runs: Sequence[RunFigures],
    bound: LowerBound | None,
    pictures: Sequence[Picture],
) -> None:
    """Write a PNG with the pictures, or a page with the figures too; raises ``PlotFailed``, ``PillowMissing``."""
    try:
        if file.suffix.lower() == ".png":
            write_png(file, pictures)
        else:
            file.write_text(html(title, facts, runs, bound, pictures), encoding="utf-8")
    except OSError as error:
        raise PlotFailed(f"{file}: cannot be written: {error.strerror or error}") from None
