"""Displays of the running demo: a live view on a terminal, or a plain line now and then."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmux.simulation.demo.scenarios import Scenario
from llmux.simulation.demo.state import DemoState, ModelSample, Stage
from llmux.simulation.figures import Distribution
from llmux.simulation.ledger import LedgerSnapshot
from llmux.simulation.residency import OFF_GPU, Phase, Timeline
from llmux.simulation.traffic import Ending

COLOURS = ("cyan", "magenta", "yellow", "green", "blue")
"""Of the models, in their order."""
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
"""Between two marks, so that their labels do not touch."""

NAME_CELLS = 9
WIDTH_MAX = 118
WIDE = 100
FIXED_LINES = 13
"""Lines of the view, but for a line for each GPU, two for each model, and the switches, which fill the rest of the
terminal; with four blank ones, if there is room for them and two switches."""
BLANK_LINES = 4
SERVE_SECONDS_SHOWN = 30.0
TAIL_SECONDS = 5.0
"""Of the time axis after the last arrival, for the last answers."""
LINE_SECONDS = 1.0


class Display:
    """Shows the demo's state, within a ``with`` block. ``show`` is called several times a second."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def announce(self, state: DemoState) -> None:
        """Called once, when the server listens."""
        self.show(state)

    def show(self, state: DemoState) -> None:
        raise NotImplementedError


class LiveDisplay(Display):
    """Redraws the view in place; log lines appear above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, state: DemoState) -> None:
        self._live.update(render(state, self._console.width, self._console.height), refresh=True)


class PlainDisplay(Display):
    """Writes a line per second; without traffic, only when something has changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_at = 0.0
        self._shown = ""

    def announce(self, state: DemoState) -> None:
        self._write(f"llmux demo: listening on {state.url}")
        if state.traffic is None:
            self._write(
                "\n".join(["try:", *curl_lines(state.url, state.scenario.example), f"status page: {state.url}/"])
            )

    def show(self, state: DemoState) -> None:
        elapsed = state.monitor.elapsed_seconds
        if elapsed < self._next_at or state.stage is Stage.STOPPING:
            return
        self._next_at = elapsed + LINE_SECONDS
        text = line(state)
        if state.traffic is not None or text != self._shown:
            self._shown = text
            self._write(f"{elapsed:5.1f} s  {text}")

    def _write(self, text: str) -> None:
        self._console.out(text, highlight=False)


def colours_of(scenario: Scenario) -> Mapping[str, str]:
    """The colour of each model, by its name."""
    return {model.name: colour for model, colour in zip(scenario.models, cycle(COLOURS), strict=False)}


def curl_lines(url: str, model: str) -> tuple[str, ...]:
    """A request to paste into a shell."""
    return (
        f"curl {url}/v1/chat/completions \\",
        "  -H 'content-type: application/json' \\",
        f"""  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hi"}}]}}'""",
    )


def line(state: DemoState) -> str:
    """The state in one line."""
    parts = []
    for sample in state.monitor.models:
        text = f"{sample.name} {sample.phase}"
        if sample.phase not in OFF_GPU and sample.in_flight:
            text += f" {sample.in_flight}"
        if sample.waiting:
            text += f", {sample.waiting} waiting ({duration(sample.oldest_wait_seconds)})"
        parts.append(text)
    traffic = state.traffic
    if traffic is not None:
        counts = [f"{traffic.count(ending)} {ending}" for ending in (Ending.ANSWERED, Ending.LEFT, Ending.LOST)]
        parts.append(", ".join([f"{traffic.open} open", *counts]))
    return " | ".join(parts)


def render(state: DemoState, width: int, height: int) -> RenderableType:
    """The live view, for a terminal of this size."""
    width = min(width, WIDTH_MAX) - 2
    left = height - FIXED_LINES - 2 * len(state.scenario.models) - len(state.ledgers) - 1
    blank = [Text()] if left >= 2 else []
    lines: list[RenderableType] = [
        _title(state, width),
        Text("─" * width, style="dim"),
        _models(state, width),
        *blank,
        *_memory(state, width),
        *blank,
        *_strips(state, width),
        *blank,
        _switches(state, max(1, left if blank else left + BLANK_LINES), width),
        *blank,
        *_footer(state),
    ]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=width, no_wrap=True)
    for row in lines:
        grid.add_row(row)
    return Group(grid)


def _title(state: DemoState, width: int) -> Table:
    left = state.seconds - state.monitor.elapsed_seconds
    stage = f"{max(0.0, left):.0f} s of traffic left" if state.stage is Stage.TRAFFIC else state.stage.value
    title = Table.grid(expand=False)
    title.add_column(width=width - len(stage) - 1, no_wrap=True)
    title.add_column(justify="right", width=len(stage) + 1)
    name = Text.assemble(("llmux demo", "bold"), (f"  {state.scenario.title}", "dim"))
    title.add_row(name, Text(stage, style="bold green"))
    return title


def _models(state: DemoState, width: int) -> Table:
    monitor, colours = state.monitor, colours_of(state.scenario)
    wide = width >= WIDE
    cells = 12 if wide else 9
    table = Table.grid(padding=(0, 2))
    table.add_column(width=NAME_CELLS - 2)
    table.add_column(width=11)
    table.add_column(width=6, justify="right")
    table.add_column(width=cells + 4)
    table.add_column(width=cells + 4)
    table.add_column(width=11, justify="right")
    if wide:
        table.add_column()
    if several := len(state.ledgers) > 1:
        table.add_column(width=3)
    heads = ["", "", "for", "in flight", "waiting", "oldest wait"]
    heads += (["leaves by"] if wide else []) + (["GPU"] if several else [])
    table.add_row(*(Text(head, style="dim") for head in heads))
    for sample, model in zip(monitor.models, state.scenario.models, strict=True):
        row = _model_row(sample, colours[model.name], monitor.sampled_at, cells)
        row += (Text(model.eviction, style="dim"),) if wide else ()
        table.add_row(*row, *([Text("+".join(sample.gpus))] if several else []))
    return table


def _model_row(sample: ModelSample, colour: str, now: float, cells: int) -> tuple[Text, ...]:
    on_gpu = sample.phase not in OFF_GPU
    oldest = sample.oldest_wait_seconds if sample.waiting else None
    return (
        Text(sample.name, style=f"bold {colour}" if on_gpu else colour),
        Text(sample.phase, style=f"bold {colour}" if on_gpu else "dim"),
        Text(duration(now - sample.since) if on_gpu else "", style="dim"),
        bar(sample.in_flight, cells, "▮", colour),
        bar(sample.waiting, cells, "▯", colour),
        Text(duration(oldest), style="bold" if oldest and oldest > 1.0 else "dim" if oldest is None else ""),
    )


def _memory(state: DemoState, width: int) -> list[Text]:
    """Who holds how much of each GPU."""
    names = ["GPU"] if len(state.ledgers) == 1 else [f"GPU {number}" for number in range(len(state.ledgers))]
    return [
        _memory_of(state, name, ledger.snapshot(), width) for name, ledger in zip(names, state.ledgers, strict=True)
    ]


def _memory_of(state: DemoState, name: str, gpu: LedgerSnapshot, width: int) -> Text:
    colours = colours_of(state.scenario)
    holders = {model.name_on_gpu: colours[model.name] for model in state.scenario.models}
    text = f"  {gibibytes(gpu.used_mib)} of {gibibytes(gpu.capacity_mib)} GiB"
    cells = max(10, min(60, width - NAME_CELLS - len(text)))
    row = Text.assemble((name.ljust(NAME_CELLS), "dim"))
    used = 0
    for allocation in gpu.allocations:
        end = used + allocation.mib
        share = round(end / gpu.capacity_mib * cells) - round(used / gpu.capacity_mib * cells)
        row.append("■" * share, style=holders.get(allocation.model, "white"))
        used = end
    row.append("□" * (cells - round(used / gpu.capacity_mib * cells)), style="dim")
    return row.append(text)


def _strips(state: DemoState, width: int) -> list[RenderableType]:
    timeline, cells = state.monitor.timeline, width - NAME_CELLS
    elapsed = state.monitor.elapsed_seconds
    if state.traffic is None:
        end = max(elapsed, SERVE_SECONDS_SHOWN)
        start = end - SERVE_SECONDS_SHOWN
    else:
        start, end = 0.0, max(state.seconds + TAIL_SECONDS, elapsed)
    rows: list[RenderableType] = [
        Text(name.ljust(NAME_CELLS), colour).append_text(strip_line(timeline, name, colour, start, end, cells, elapsed))
        for name, colour in colours_of(state.scenario).items()
    ]
    rows.append(Text(" " * NAME_CELLS).append_text(axis_line(start, end, cells)))
    rows.append(Text(" " * NAME_CELLS + LEGEND, style="dim"))
    return rows


def _switches(state: DemoState, lines: int, width: int) -> Table:
    colours = colours_of(state.scenario)
    table = Table.grid(padding=(0, 2))
    table.add_column(width=28 if width < WIDE else 36)
    for _ in range(4):
        table.add_column(width=8, justify="right")
    heads = ("latest switches", "drain", "leave", "come", "in all")
    table.add_row(*(Text(head, style="dim") for head in heads))
    for switch in reversed(state.monitor.switches[-lines:]):
        name = Text.assemble(
            (switch.previous or "nobody", colours.get(switch.previous, "dim")),
            (" → ", "dim"),
            (switch.model, colours.get(switch.model, "")),
            (" (started)" if switch.from_cold else "", "dim"),
        )
        table.add_row(
            name,
            duration(switch.drain_seconds) if switch.previous else "–",
            duration(switch.evict_seconds) if switch.previous else "–",
            duration(switch.wake_seconds),
            Text(duration(switch.total_seconds), style="bold"),
        )
    return table


def _footer(state: DemoState) -> list[Text]:
    traffic = state.traffic
    if traffic is None:
        status = Text.assemble(("status page ", "dim"), f"{state.url}/", ("    Ctrl-C stops", "dim"))
        return [*(Text(row) for row in curl_lines(state.url, state.scenario.example)), status]
    faults = [
        (f"{number} {ending}", "bold red" if number else "green")
        for ending in (Ending.LOST, Ending.WRONG)
        for number in [traffic.count(ending)]
    ]
    answered = f"{traffic.count(Ending.ANSWERED)} answered"
    counts = [f"{traffic.sent} requests", answered, f"{traffic.open} open", f"{traffic.count(Ending.LEFT)} left"]
    wait = Distribution.of(wait for one in traffic.outcomes if (wait := one.wait_seconds) is not None)
    parts = [f"wait p50 {duration(wait.p50)}", f"p99 {duration(wait.p99)}", f"longest {duration(wait.max)}"]
    return [joined([*counts, *faults]), joined(parts)]


def duration(seconds: float | None) -> str:
    """``0.35 s``, ``2.1 s``, ``75 s``; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 59.95 else f"{seconds:.0f} s"


def gibibytes(mib: int) -> str:
    """``20.0``."""
    return f"{mib / 1024:.1f}"


def bar(number: int, cells: int, sign: str, style: str) -> Text:
    """A number as a bar of at most ``cells`` signs and as digits; a dash for 0."""
    if not number:
        return Text("–", style="dim")
    return Text.assemble((sign * min(number, cells), style), f" {number}")


def strip_line(timeline: Timeline, model: str, colour: str, start: float, end: float, cells: int, now: float) -> Text:
    """One model's phases from ``start`` to ``end``, a sign per cell; blank after ``now``."""
    width = (end - start) / cells
    shown = max(1, min(cells, math.ceil((now - start) / width)))
    row = Text()
    for phase in timeline.strip(model, start, start + shown * width, shown):
        row.append(SIGNS[phase], style="dim" if phase in OFF_GPU else colour)
    return row


def axis_line(start: float, end: float, cells: int) -> Text:
    """A time axis below strips, marked at round numbers of seconds."""
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
    """Parts in one line, separated by dots."""
    row = Text()
    for number, part in enumerate(parts):
        if number:
            row.append(" · ", style="dim")
        row.append_text(Text.assemble(part))
    return row
