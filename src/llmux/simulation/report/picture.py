"""The picture of a run: who was on the GPU when, and how long requests waited for their first token."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmux.simulation.report.shapes import Anchor, Box, Label, Line, Picture, Shape
from llmux.simulation.report.strip import runs, strip
from llmux.simulation.virtual.timeline import Phase, Timeline

WIDTH, MARGIN, NAMES_WIDTH = 1100.0, 20.0, 130.0
ROW, ROW_GAP, AXIS = 16.0, 4.0, 26.0
CURVES_HEIGHT, CURVES_GAP, CURVES_PER_ROW = 220.0, 50.0, 3
MODELS_SHOWN = 40
CURVES_SHOWN = 5
SHORTEST_SHOWN_SECONDS = 0.1
GREY, GRID = "#57606a", "#d0d7de"

PHASE_COLOURS = {
    Phase.WAKING: "#f0b429",
    Phase.SERVING: "#1f883d",
    Phase.IDLE: "#aceebb",
    Phase.DRAINING: "#0969da",
    Phase.EVICTING: "#d1242f",
}
CURVE_COLOURS = ("#0969da", "#d1242f", "#1f883d", "#8250df", "#bc4c00", "#0a7d91", "#bf3989", "#57606a")
STEPS_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400, 604800)


@dataclass(frozen=True, slots=True)
class PlottedRun:
    """What is shown of one policy: its timeline, and by model every time to first token, infinite where none came."""

    name: str
    timeline: Timeline
    end: float
    ttfts: Mapping[str, Sequence[float]]


def gantt(plotted: Sequence[PlottedRun], models: Sequence[str]) -> Picture:
    """One row for each policy and model, over a common time."""
    shown = models[:MODELS_SHOWN]
    end = max((run.end for run in plotted), default=0.0) or 1.0
    block = 20.0 + len(shown) * (ROW + ROW_GAP) + AXIS
    picture = Picture(WIDTH, MARGIN + 24 + block * len(plotted))
    picture.shapes += _legend()
    top = MARGIN + 24
    left, width = MARGIN + NAMES_WIDTH, WIDTH - 2 * MARGIN - NAMES_WIDTH
    for run in plotted:
        picture.shapes.append(Label(MARGIN, top + 8, run.name, 13.0))
        for number, model in enumerate(shown):
            y = top + 16 + number * (ROW + ROW_GAP)
            picture.shapes.append(Label(left - 8, y + ROW - 4, _short(model), anchor=Anchor.END, colour=GREY))
            picture.shapes.append(Box(left, y, width, ROW, "#f6f8fa"))
            picture.shapes += _row(run, model, end, left, y, int(width))
        picture.shapes += _time_axis(end, left, width, top + 16 + len(shown) * (ROW + ROW_GAP))
        top += block
    return picture


def curves(plotted: Sequence[PlottedRun], models: Sequence[str], bound: Sequence[float] = ()) -> Picture:
    """Which share of the requests had its first token within how long: of all requests, and of each model's."""
    shown: list[str | None] = [None]
    if len(models) > 1:
        shown += models[:CURVES_SHOWN]
    rows = math.ceil(len(shown) / CURVES_PER_ROW)
    picture = Picture(WIDTH, MARGIN + 24 + rows * (CURVES_HEIGHT + CURVES_GAP))
    names = [run.name for run in plotted] + (["lower bound"] if bound else [])
    x = MARGIN
    for name, colour in zip(names, _colours(len(names)), strict=True):
        picture.shapes += [Box(x, MARGIN - 8, 14, 4, colour), Label(x + 20, MARGIN - 2, name)]
        x += 50 + 7 * len(name)
    longest = max(
        (one for run in plotted for some in run.ttfts.values() for one in some if one < math.inf), default=1.0
    )
    width = (WIDTH - 2 * MARGIN - (CURVES_PER_ROW - 1) * CURVES_GAP) / CURVES_PER_ROW
    for number, model in enumerate(shown):
        row, column = divmod(number, CURVES_PER_ROW)
        frame = _Frame(
            MARGIN + column * (width + CURVES_GAP) + 30,
            MARGIN + 34 + row * (CURVES_HEIGHT + CURVES_GAP),
            width - 30,
            CURVES_HEIGHT - 20,
            max(longest, SHORTEST_SHOWN_SECONDS * 10),
        )
        picture.shapes += frame.grid("all models" if model is None else model)
        lines = [_chosen(run.ttfts, model) for run in plotted] + ([bound] if bound and model is None else [])
        for durations, colour in zip(lines, _colours(len(names)), strict=False):
            picture.shapes += frame.curve(durations, colour)
    return picture


def _chosen(ttfts: Mapping[str, Sequence[float]], model: str | None) -> list[float]:
    if model is not None:
        return list(ttfts.get(model, ()))
    return [duration for some in ttfts.values() for duration in some]


def _colours(count: int) -> list[str]:
    return [CURVE_COLOURS[number % len(CURVE_COLOURS)] for number in range(count)]


def _legend() -> Iterator[Shape]:
    x = MARGIN
    for phase, colour in PHASE_COLOURS.items():
        yield Box(x, MARGIN - 10, 12, 12, colour)
        yield Label(x + 18, MARGIN, phase.value)
        x += 90


def _row(run: PlottedRun, model: str, end: float, left: float, y: float, columns: int) -> Iterator[Shape]:
    second = end / columns
    for begin, stop, phase in runs(strip(run.timeline, model, end, columns)):
        if phase is not Phase.OFF:
            hint = f"{model}: {phase.value}, {begin * second:.1f} to {stop * second:.1f} s"
            yield Box(left + begin, y, stop - begin, ROW, PHASE_COLOURS[phase], hint)


def _time_axis(end: float, left: float, width: float, y: float) -> Iterator[Shape]:
    step = next((step for step in STEPS_SECONDS if end / step <= 12), STEPS_SECONDS[-1])
    for number in range(int(end / step) + 1):
        x = left + number * step / end * width
        yield Line(((x, y), (x, y + 4)), GREY)
        yield Label(x, y + 14, time_text(number * step), 10.0, GREY, Anchor.MIDDLE)


def time_text(seconds: float) -> str:
    """``90 s``, ``15 min``, ``3 h``."""
    if seconds < 120 or seconds % 60:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 7200 or seconds % 3600 else f"{seconds / 3600:g} h"


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"…{name[-19:]}"


@dataclass(frozen=True, slots=True)
class _Frame:
    """Axes: the share of the requests upwards, durations on a logarithmic scale to the right."""

    left: float
    top: float
    width: float
    height: float
    longest: float

    def _x(self, seconds: float) -> float:
        whole = math.log(self.longest / SHORTEST_SHOWN_SECONDS)
        return self.left + self.width * math.log(max(seconds, SHORTEST_SHOWN_SECONDS) / SHORTEST_SHOWN_SECONDS) / whole

    def _y(self, share: float) -> float:
        return self.top + self.height * (1 - share)

    def grid(self, title: str) -> Iterator[Shape]:
        """Title, lines and numbers."""
        yield Label(self.left, self.top - 6, f"share of requests with a first token within …, {_short(title)}", 10.0)
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            y = self._y(share)
            yield Line(((self.left, y), (self.left + self.width, y)), GRID)
            yield Label(self.left - 4, y + 4, f"{share:.0%}", 9.0, GREY, Anchor.END)
        seconds = SHORTEST_SHOWN_SECONDS
        while seconds <= self.longest * 1.0001:
            x = self._x(seconds)
            yield Line(((x, self.top), (x, self.top + self.height)), GRID)
            yield Label(x, self.top + self.height + 13, f"{seconds:g} s", 9.0, GREY, Anchor.MIDDLE)
            seconds *= 10

    def curve(self, durations: Sequence[float], colour: str) -> Iterator[Shape]:
        """The distribution of some durations, a point for every second pixel."""
        ordered = sorted(durations)
        if not ordered:
            return
        points = []
        for column in range(0, int(self.width) + 1, 2):
            seconds = SHORTEST_SHOWN_SECONDS * (self.longest / SHORTEST_SHOWN_SECONDS) ** (column / self.width)
            points.append((self.left + column, self._y(bisect_right(ordered, seconds) / len(ordered))))
        points.append((self.left + self.width, self._y(bisect_right(ordered, self.longest) / len(ordered))))
        yield Line(tuple(points), colour, 1.8)
