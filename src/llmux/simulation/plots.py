"""Pictures of a study: which model was on the GPU when, and times to first token. Drawn by matplotlib.

matplotlib is an extra and takes a third of a second to import, so it is imported only when a picture is drawn.
"""

import io
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from llmux.errors import LlmuxError
from llmux.simulation.figures import RunFigures
from llmux.simulation.gpu_tables import GPU_NOTE, gpu_rows
from llmux.simulation.residency import OFF_GPU, Phase
from llmux.simulation.tables import NOTE, Rows, on_time_rows, rest_rows, wait_rows
from llmux.simulation.virtual.study import PlottedRun, Study

SUFFIXES = (".html", ".svg", ".png")
MODELS_SHOWN = 40
"""In the rows of a policy, so that a picture of many policies remains usable."""
CURVES_SHOWN = 5
"""The models that get a panel of their own beside that of all models."""
PANELS_PER_ROW = 3
CELLS = 1200
"""Time steps in a row, about one per pixel: a trace of days has more switches than a picture can show."""
POINTS = 400
"""Of a curve, for the same reason."""
SHORTEST_SECONDS = 0.1
"""The left end of the time axis, which is logarithmic; shorter times are drawn there."""
WIDTH_INCHES, ROW_INCHES, PANEL_INCHES = 11.0, 0.26, 2.7
PNG_DPI = 150
UNITS = ((600.0, "s", 1.0), (3 * 3600.0, "min", 60.0), (math.inf, "h", 3600.0))
"""Of the time axis: up to which duration, its name, and its seconds."""

# The palettes of Okabe and Ito, which remain distinct with the common kinds of colour blindness. Curves also differ in
# their line styles, for printing in grey.
PHASE_COLOURS = {
    Phase.WAKING: "#E69F00",
    Phase.SERVING: "#009E73",
    Phase.IDLE: "#C9CED3",
    Phase.DRAINING: "#56B4E9",
    Phase.LEAVING: "#D55E00",
}
PHASE_LABELS = {Phase.WAKING: "waking or starting", Phase.IDLE: "on the GPU, idle"}
LEASE_STYLE: dict[str, Any] = {"facecolor": "none", "edgecolor": "#6E7781", "hatch": "///", "linewidth": 0}
CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CURVE_STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)))
STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",  # Text stays text: smaller files, and names can be searched for.
    "svg.hashsalt": "llmux",  # The same study gives the same file.
    "text.parse_math": False,  # A model's name may contain dollar signs.
}

PAGE_STYLE = """
body{font-family:system-ui,sans-serif;margin:2em;color:#24292f;max-width:1140px}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}
th,td{padding:.2em .7em;text-align:right;border-bottom:1px solid #d0d7de}
th:first-child,td:first-child{text-align:left}
tr.whole{font-weight:600}
th,p{color:#57606a;font-weight:normal}
svg{max-width:100%;height:auto}
"""


class PlotFailed(LlmuxError):
    """A picture cannot be written."""


class PlotLibraryMissing(LlmuxError):
    """A picture was asked for and there is nothing to draw it with."""

    def __init__(self) -> None:
        super().__init__(
            "--plot needs matplotlib, which is not installed; install it with: pip install 'llmux-gateway[plot]'"
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What a picture file shows. ``facts`` are sentences above the tables of an HTML page."""

    title: str
    facts: Sequence[str]
    models: Sequence[str]
    study: Study


def check_plot_file(file: Path) -> None:
    """Raises ``PlotFailed`` or ``PlotLibraryMissing`` before the work is done if the file cannot be written."""
    if file.suffix.lower() not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise PlotFailed(f"{file}: the file's suffix decides what is written; it must be {known}")
    if not file.parent.is_dir():
        raise PlotFailed(f"{file}: the directory {file.parent} does not exist")
    _require_matplotlib()


def write_plot(file: Path, report: Report) -> None:
    """Write a PNG or an SVG picture, or an HTML page with the tables and the picture, by the file's suffix.

    Raises ``PlotFailed``, ``PlotLibraryMissing``.
    """
    suffix = file.suffix.lower()
    content = _drawn(report, "png" if suffix == ".png" else "svg")
    if suffix == ".html":
        content = _page(report, content.decode()).encode()
    try:
        file.write_bytes(content)
    except OSError as error:
        raise PlotFailed(f"{file}: cannot be written: {error.strerror or error}") from None


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PlotLibraryMissing from None


def _drawn(report: Report, format_: str) -> bytes:
    _require_matplotlib()
    from matplotlib import rc_context

    # Saving picks the Agg or SVG canvas by the format. pyplot, which needs a GUI backend, is not used.
    with rc_context(STYLE):
        output = io.BytesIO()
        metadata = {"Date": None} if format_ == "svg" else None
        _figure(report).savefig(output, format=format_, dpi=PNG_DPI, metadata=metadata)
    return output.getvalue()


def _figure(report: Report) -> Any:
    from matplotlib.figure import Figure

    plotted = report.study.plotted
    rows = min(len(report.models), MODELS_SHOWN)
    panels = 1 + (min(len(report.models), CURVES_SHOWN) if len(report.models) > 1 else 0)
    heights = (
        0.9 + len(plotted) * (0.45 + rows * ROW_INCHES),
        1.1 + math.ceil(panels / PANELS_PER_ROW) * PANEL_INCHES,
    )
    figure: Any = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights, hspace=0.03)
    _draw_residency(top, report)
    _draw_first_tokens(bottom, report, panels)
    return figure


def _draw_residency(figure: Any, report: Report) -> None:
    """Below each other for each policy, a row per model, on a common time axis."""
    from matplotlib.patches import Patch

    models = report.models[:MODELS_SHOWN]
    plotted = report.study.plotted
    end = max((run.end for run in plotted), default=0.0) or 1.0
    _, unit, unit_seconds = next(entry for entry in UNITS if end <= entry[0])
    figure.suptitle("Who is on the GPU", x=0.01, ha="left", fontweight="bold")
    all_axes = figure.subplots(len(plotted), 1, sharex=True, squeeze=False)[:, 0]
    for axes, run, figures in zip(all_axes, plotted, report.study.runs, strict=True):
        axes.set_title(_headline(figures), loc="left")
        for row, model in enumerate(models):
            for phase, spans in _spans(run, model, end, unit_seconds).items():
                axes.broken_barh(spans, (row - 0.4, 0.8), color=PHASE_COLOURS[phase], linewidth=0)
        for lease in run.leases:
            if lease.held_at is not None:
                ended_at = run.end if lease.ended_at is None else lease.ended_at
                axes.axvspan(lease.held_at / unit_seconds, ended_at / unit_seconds, **LEASE_STYLE)
        axes.set_yticks(range(len(models)), [_short(model) for model in models])
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlim(0, end / unit_seconds)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#E6E8EB", linewidth=0.6)
        axes.set_axisbelow(True)
    all_axes[-1].set_xlabel(f"time since the trace began ({unit})")
    handles = [Patch(color=colour, label=PHASE_LABELS.get(phase, phase)) for phase, colour in PHASE_COLOURS.items()]
    if any(run.leases for run in plotted):
        handles.append(Patch(label="a GPU lease is held", **LEASE_STYLE))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.0)


def _spans(run: PlottedRun, model: str, end: float, unit_seconds: float) -> dict[Phase, list[tuple[float, float]]]:
    """Begin and length of the bars of each phase, in the axis's unit."""
    bars: dict[Phase, list[tuple[float, float]]] = {}
    cell, width = 0, end / CELLS / unit_seconds
    for phase, cells in groupby(run.timeline.strip(model, 0.0, end, CELLS)):
        count = len(list(cells))
        if phase not in OFF_GPU:
            shown = Phase.WAKING if phase is Phase.STARTING else phase
            bars.setdefault(shown, []).append((cell * width, count * width))
        cell += count
    return bars


def _headline(figures: RunFigures) -> str:
    share = figures.total.share
    parts = [] if share is None else [("serving", share.serving), ("switching", share.switching)]
    parts += [] if share is None else [("draining", share.draining), ("idle", share.idle)]
    texts = [f"{figures.total.switches} switches", *(f"{part:.0%} {name}" for name, part in parts)]
    return f"{figures.name}:  {', '.join(texts)}"


def _draw_first_tokens(figure: Any, report: Report, panels: int) -> None:
    """A panel for all models and for each of some; in each, a curve per policy on common axes."""
    plotted = report.study.plotted
    figure.suptitle("Time to first token", x=0.01, ha="left", fontweight="bold")
    finite = [one for run in plotted for some in run.ttfts.values() for one in some if one < math.inf]
    longest = max(10 * SHORTEST_SECONDS, *finite) if finite else 10 * SHORTEST_SECONDS
    columns = min(panels, PANELS_PER_ROW)
    rows = math.ceil(panels / columns)
    all_axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    lines: dict[str, Any] = {}
    for number, axes in enumerate(all_axes):
        if number >= panels:
            axes.set_visible(False)
            continue
        model = report.models[number - 1] if number else None
        axes.set_title(_short(model) if model else "all models", loc="left")
        styles = zip(plotted, cycle(CURVE_COLOURS), cycle(CURVE_STYLES), strict=False)
        for run, colour, style in styles:
            durations = [one for name, some in run.ttfts.items() if model in (None, name) for one in some]
            (lines[run.name],) = axes.plot(*_curve(durations, longest), color=colour, linestyle=style, linewidth=1.6)
        axes.set_xscale("log")
        axes.set_xlim(SHORTEST_SECONDS, longest)
        axes.set_ylim(0, 102)
        axes.set_yticks((0, 25, 50, 75, 90, 100))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")  # Over less than a decade they would have labels too, in math.
        axes.grid(color="#E6E8EB", linewidth=0.6)
        axes.tick_params(labelbottom=number + columns >= panels)
        if number + columns >= panels:
            axes.set_xlabel("time to first token (s)")
        if number % columns == 0:
            axes.set_ylabel("requests with a first token (%)")
    figure.legend(list(lines.values()), list(lines), loc="outside upper right", ncols=len(lines), handlelength=3.0)


def _curve(durations: Sequence[float], longest: float) -> tuple[list[float], list[float]]:
    """The cumulative distribution: times, and the percentage of all durations, infinite ones included, within each."""
    ordered = sorted(durations)
    ratio = longest / SHORTEST_SECONDS
    times = [SHORTEST_SECONDS * ratio ** (number / (POINTS - 1)) for number in range(POINTS)]
    times[-1] = longest
    return times, [100 * bisect_right(ordered, seconds) / max(1, len(ordered)) for seconds in times]


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _page(report: Report, svg: str) -> str:
    """One HTML page that loads nothing else."""
    study = report.study
    parts = [f"<h1>{escape(report.title)}</h1>", *(f"<p>{escape(fact)}</p>" for fact in report.facts)]
    parts += _table(on_time_rows(study.runs))
    parts += _table(wait_rows(study.runs, study.bound))
    parts += _table(rest_rows(study.runs))
    parts.append(f"<p>{escape(NOTE)}</p>")
    if study.uses:
        parts += _table(gpu_rows([run.name for run in study.runs], study.uses))
        parts.append(f"<p>{escape(GPU_NOTE)}</p>")
    parts.append(svg[svg.index("<svg") :])
    head = f'<meta charset="utf-8"><title>{escape(report.title)}</title><style>{PAGE_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _table(rows: Rows) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{escape(head)}</th>" for head in rows.heads) + "</tr>"
    for is_whole, cells in rows.rows:
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        yield f'<tr class="whole">{row}</tr>' if is_whole else f"<tr>{row}</tr>"
    yield "</table>"
