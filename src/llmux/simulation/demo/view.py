"""The live view: who is on the GPU, who waits and how long, and the latest switches."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmux.simulation.demo.board import Board, Stage, curl_lines
from llmux.simulation.demo.observation import OFF_GPU, ModelView, Sample
from llmux.simulation.demo.records import Ending
from llmux.simulation.demo.scenario import MODELS
from llmux.simulation.demo.style import (
    COLOURS,
    LEGEND,
    WORDS,
    axis_line,
    bar,
    duration,
    gibibytes,
    joined,
    strip_line,
)
from llmux.simulation.demo.summary import Waits
from llmux.simulation.demo.switches import Switch
from llmux.simulation.ledger import LedgerSnapshot

NAME_CELLS = 9
WIDTH_MAX = 118
WIDE = 100
FIXED_LINES = 20
SERVE_SECONDS_SHOWN = 30.0
TAIL_SECONDS = 5.0


def render(board: Board, width: int, height: int) -> RenderableType:
    """The whole view, for a terminal of this size."""
    width = min(width, WIDTH_MAX) - 2
    sample = board.observation.samples[-1]
    lines: list[RenderableType] = [
        _title(board, width),
        Text("─" * width, style="dim"),
        _models(sample, width),
        Text(),
        _memory(board.ledger.snapshot(), width),
        Text(),
        *_strips(board, width),
        Text(),
        _switches(board.observation.switches[-max(1, height - FIXED_LINES - 1) :], width),
        Text(),
        *_footer(board),
    ]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=width, no_wrap=True)
    for line in lines:
        grid.add_row(line)
    return Group(grid)


def _title(board: Board, width: int) -> Table:
    left = board.seconds - board.elapsed_seconds
    stage = f"{max(0.0, left):.0f} s of traffic left" if board.stage is Stage.TRAFFIC else board.stage.value
    title = Table.grid(expand=False)
    title.add_column(width=width - len(stage) - 1, no_wrap=True)
    title.add_column(justify="right", width=len(stage) + 1)
    name = Text.assemble(("llmux demo", "bold"), ("  three models on a GPU that holds one", "dim"))
    title.add_row(name, Text(stage, style="bold green"))
    return title


def _models(sample: Sample, width: int) -> Table:
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
    heads = ["", "", "for", "in flight", "waiting", "oldest wait", *(["leaves by"] if wide else [])]
    table.add_row(*(Text(head, style="dim") for head in heads))
    for view, model in zip(sample.models, MODELS, strict=True):
        row = _model_row(view, sample.at, cells)
        table.add_row(*row, *([Text(model.eviction, style="dim")] if wide else []))
    return table


def _model_row(view: ModelView, now: float, cells: int) -> tuple[Text, ...]:
    colour = COLOURS.get(view.name, "white")
    on_gpu = view.phase not in OFF_GPU
    oldest = view.oldest_wait_seconds if view.waiting else None
    return (
        Text(view.name, style=f"bold {colour}" if on_gpu else colour),
        Text(WORDS[view.phase], style=f"bold {colour}" if on_gpu else "dim"),
        Text(duration(now - view.since) if on_gpu else "", style="dim"),
        bar(view.in_flight, cells, "▮", colour),
        bar(view.waiting, cells, "▯", colour),
        Text(duration(oldest), style="bold" if oldest and oldest > 1.0 else "dim" if oldest is None else ""),
    )


def _memory(gpu: LedgerSnapshot, width: int) -> Text:
    text = f"  {gibibytes(gpu.used_mib)} of {gibibytes(gpu.capacity_mib)} GiB"
    cells = max(10, min(60, width - NAME_CELLS - len(text)))
    line = Text.assemble(("GPU".ljust(NAME_CELLS), "dim"))
    used = 0
    for allocation in gpu.allocations:
        end = used + allocation.mib
        share = round(end / gpu.capacity_mib * cells) - round(used / gpu.capacity_mib * cells)
        line.append("■" * share, style=COLOURS.get(allocation.model, "white"))
        used = end
    line.append("□" * (cells - round(used / gpu.capacity_mib * cells)), style="dim")
    return line.append(text)


def _strips(board: Board, width: int) -> list[RenderableType]:
    observation, cells = board.observation, width - NAME_CELLS
    elapsed = board.elapsed_seconds
    if board.traffic is None:
        end = max(elapsed, SERVE_SECONDS_SHOWN)
        start = end - SERVE_SECONDS_SHOWN
    else:
        start, end = 0.0, max(board.seconds + TAIL_SECONDS, elapsed)
    origin = observation.started_at
    lines: list[RenderableType] = [
        Text.assemble((name.ljust(NAME_CELLS), COLOURS[name])).append_text(
            strip_line(observation.samples, name, origin + start, origin + end, cells)
        )
        for name in (model.name for model in MODELS)
    ]
    lines.append(Text(" " * NAME_CELLS).append_text(axis_line(start, end, cells)))
    lines.append(Text(" " * NAME_CELLS + LEGEND, style="dim"))
    return lines


def _switches(switches: Sequence[Switch], width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=28 if width < WIDE else 36)
    for _ in range(4):
        table.add_column(width=8, justify="right")
    heads = ("latest switches", "drain", "leave", "come", "in all")
    table.add_row(*(Text(head, style="dim") for head in heads))
    for switch in reversed(switches):
        table.add_row(
            switch_name(switch),
            duration(switch.drain_seconds) if switch.previous else "–",
            duration(switch.evict_seconds) if switch.previous else "–",
            duration(switch.wake_seconds),
            Text(duration(switch.total_seconds), style="bold"),
        )
    return table


def switch_name(switch: Switch) -> Text:
    """``llama → qwen``, and whether the engine had to be started."""
    previous = switch.previous or "nobody"
    name = Text.assemble(
        (previous, COLOURS.get(switch.previous, "dim")), (" → ", "dim"), (switch.model, COLOURS.get(switch.model, ""))
    )
    return name.append(" (started)", style="dim") if switch.from_cold else name


def _footer(board: Board) -> list[Text]:
    traffic = board.traffic
    if traffic is None:
        status = Text.assemble(("status page ", "dim"), f"{board.url}/", ("    Ctrl-C stops", "dim"))
        return [*(Text(line) for line in curl_lines(board.url, "qwen")), status]
    bad = [
        (f"{number} {ending}", "bold red" if number else "green")
        for ending in (Ending.LOST, Ending.WRONG)
        for number in [traffic.count(ending)]
    ]
    answered = f"{traffic.count(Ending.ANSWERED)} answered"
    counts = [f"{traffic.sent} requests", answered, f"{traffic.open} open", f"{traffic.count(Ending.LEFT)} left"]
    waits = Waits.of(traffic.records)
    parts = [f"wait p50 {duration(waits.p50)}", f"p99 {duration(waits.p99)}", f"longest {duration(waits.longest)}"]
    return [joined([*counts, *bad]), joined(parts)]
