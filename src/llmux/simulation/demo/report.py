"""The summary for a reader."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmux.simulation.demo.board import Board
from llmux.simulation.demo.records import Ending
from llmux.simulation.demo.scenario import MODELS
from llmux.simulation.demo.style import COLOURS, LEGEND, axis_line, duration, gibibytes, joined, strip_line
from llmux.simulation.demo.summary import ModelFigures, Summary, Waits
from llmux.simulation.percentile import percentile

NAME_CELLS = 11
WIDTH_MAX = 100
LEAVING = {model.name: model.eviction for model in MODELS}


def render_summary(summary: Summary, board: Board, width: int) -> RenderableType:
    """All figures, and who was on the GPU when."""
    cells = min(width, WIDTH_MAX) - NAME_CELLS - 2
    start, end = board.observation.started_at, board.observation.started_at + max(summary.seconds, 1.0)
    samples = board.observation.samples
    rows: list[RenderableType] = [
        _verdict(summary),
        Text(),
        _figures(summary),
        Text(),
        _models(summary),
        Text(),
        *(
            Text.assemble((name.ljust(NAME_CELLS), COLOURS[name])).append_text(
                strip_line(samples, name, start, end, cells)
            )
            for name in COLOURS
        ),
        Text(" " * NAME_CELLS).append_text(axis_line(0.0, end - start, cells)),
        Text(" " * NAME_CELLS + LEGEND, style="dim"),
    ]
    rows += [Text(f"! {problem}", style="red", overflow="fold") for problem in summary.problems]
    return Group(*rows)


def _verdict(summary: Summary) -> Text:
    endings = summary.endings
    if summary.is_good:
        verdict = "interrupted, none lost until then" if endings[Ending.CUT_SHORT] else "no request lost"
        return Text.assemble(
            ("llmux demo: ", "bold"),
            (verdict, "bold green"),
            (f", {summary.requests} requests, 3 models, one GPU, {duration(summary.seconds)}", "bold"),
        )
    faults = [f"{endings[ending]} {ending}" for ending in (Ending.LOST, Ending.WRONG) if endings[ending]]
    if summary.gpu.refused:
        faults.append(f"the GPU over-committed {len(summary.gpu.refused)} times")
    return Text.assemble(("llmux demo: ", "bold"), (", ".join(faults), "bold red"), f" of {summary.requests} requests")


def _figures(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=NAME_CELLS - 2, style="dim")
    table.add_column()
    endings, shares = summary.endings, summary.shares
    shown = [ending for ending in Ending if endings[ending] or ending is not Ending.CUT_SHORT]
    counts = [Text(f"{endings[ending]} {ending}", style=_style(ending, endings[ending])) for ending in shown]
    table.add_row("requests", joined([*counts, f"{summary.streamed} streamed"]))
    table.add_row("waits", _waits(summary.waits))
    totals = sorted(switch.total_seconds for switch in summary.switches)
    cold = sum(switch.from_cold for switch in summary.switches)
    longest = totals[-1] if totals else None
    parts = [f"{len(totals)}, {cold} with a start of the engine", f"p50 {duration(percentile(totals, 50))}"]
    table.add_row("switches", joined([*parts, f"longest {duration(longest)}"]))
    whole = shares.total or 1.0
    parts = [f"{share / whole:.0%} {name}" for name, share in _named_shares(summary)]
    note = (f" (in {shares.draining / whole:.0%} answers still ran)", "dim")
    table.add_row("time", joined([parts[0], Text.assemble(parts[1], note), parts[2]]))
    gpu = summary.gpu
    memory = f"at most {gibibytes(gpu.peak_mib)} of {gibibytes(gpu.capacity_mib)} GiB held"
    refused = (f"{len(gpu.refused)} over-commitments", "bold red" if gpu.refused else "green")
    table.add_row("GPU", joined([memory, refused]))
    return table


def _named_shares(summary: Summary) -> list[tuple[str, float]]:
    shares = summary.shares
    return [("serving", shares.serving), ("switching", shares.switching), ("idle", shares.idle)]


def _style(ending: Ending, number: int) -> str:
    if ending in (Ending.LOST, Ending.WRONG):
        return "bold red" if number else "green"
    return ""


def _waits(waits: Waits) -> Text:
    return joined([f"p50 {duration(waits.p50)}", f"p99 {duration(waits.p99)}", f"longest {duration(waits.longest)}"])


def _models(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=NAME_CELLS - 2)
    table.add_column(width=22)
    for _ in range(2):
        table.add_column(justify="right", width=8)
    for _ in range(2):
        table.add_column(justify="right", width=9)
    heads = ("", "leaves the GPU by", "requests", "switches", "wait p50", "wait p99")
    table.add_row(*(Text(head, style="dim") for head in heads))
    for model in summary.models:
        table.add_row(*_model_row(model))
    return table


def _model_row(model: ModelFigures) -> tuple[Text, ...]:
    return (
        Text(model.name, style=COLOURS.get(model.name, "")),
        Text(LEAVING.get(model.name, ""), style="dim"),
        Text(str(model.requests)),
        Text(str(model.brought_in)),
        Text(duration(model.waits.p50)),
        Text(duration(model.waits.p99)),
    )
