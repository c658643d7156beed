"""What the demo's pictures have in common: colours, signs, and how numbers are written."""

from collections.abc import Iterable, Sequence

from rich.text import Text

from llmux.simulation.demo.observation import OFF_GPU, Phase, Sample, strip
from llmux.simulation.demo.scenario import MODELS

COLOURS = dict(zip((model.name for model in MODELS), ("cyan", "magenta", "yellow"), strict=True))
WORDS = {
    Phase.NOT_STARTED: "not started",
    Phase.ASLEEP: "asleep",
    Phase.FAILED: "failed",
    Phase.STARTING: "starting",
    Phase.WAKING: "waking",
    Phase.SERVING: "serving",
    Phase.IDLE: "idle",
    Phase.DRAINING: "draining",
    Phase.LEAVING: "leaving",
}
SIGNS = {
    Phase.NOT_STARTED: "·",
    Phase.ASLEEP: "·",
    Phase.FAILED: "×",
    Phase.STARTING: "░",
    Phase.WAKING: "░",
    Phase.SERVING: "█",
    Phase.IDLE: "▂",
    Phase.DRAINING: "▓",
    Phase.LEAVING: "▒",
}
LEGEND = "█ serving  ▓ draining  ▒ leaving  ░ coming  ▂ idle  · off the GPU"
AXIS_STEPS_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
AXIS_CELLS_MIN = 8


def duration(seconds: float | None) -> str:
    """``0.35 s``, ``2.1 s``, ``75 s``."""
    if seconds is None:
        return "–"
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 59.95 else f"{seconds:.0f} s"


def gibibytes(mib: int) -> str:
    """``20.0``."""
    return f"{mib / 1024:.1f}"


def bar(number: int, cells: int, sign: str, style: str) -> Text:
    """A number as that many signs and as digits; no more signs than cells."""
    if not number:
        return Text("–", style="dim")
    return Text.assemble((sign * min(number, cells), style), f" {number}")


def strip_line(samples: Iterable[Sample], model: str, start: float, end: float, cells: int) -> Text:
    """Who was on the GPU when, for one model."""
    line = Text()
    for phase in strip(samples, model, start, end, cells):
        if phase is None:
            line.append(" ")
        else:
            line.append(SIGNS[phase], style="dim" if phase in OFF_GPU else COLOURS.get(model, "white"))
    return line


def axis_line(start: float, end: float, cells: int) -> Text:
    """Seconds below strips, at round numbers; ``start`` and ``end`` are seconds on the clock that is shown."""
    span = end - start
    step = next((s for s in AXIS_STEPS_SECONDS if s / span * cells >= AXIS_CELLS_MIN), AXIS_STEPS_SECONDS[-1])
    signs = [" "] * (cells + AXIS_CELLS_MIN)
    second = -(-int(start) // step) * step
    while second <= end:
        cell = round((second - start) / span * cells)
        if cell < 0 or cell > cells - 3:
            break
        signs[cell : cell + len(f"{second} s")] = f"{second} s"
        second += step
    return Text("".join(signs)[:cells].rstrip(), style="dim")


def joined(parts: Sequence[str | Text | tuple[str, str]]) -> Text:
    """Parts in one line, with dots between them."""
    line = Text()
    for number, part in enumerate(parts):
        if number:
            line.append(" · ", style="dim")
        line.append_text(Text.assemble(part))
    return line
