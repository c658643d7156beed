"""Pictures can be written in each format, hold what they should, and their absence is explained."""

import math
import re
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from llmux.simulation.figures import LowerBound, run_figures
from llmux.simulation.occupancy import LeaseTimes
from llmux.simulation.plots import (
    CURVE_COLOURS,
    PHASE_COLOURS,
    PlotFailed,
    PlotLibraryMissing,
    Report,
    _curve,
    _figure,
    check_plot_file,
    write_plot,
)
from llmux.simulation.residency import Phase, Shares, Timeline
from llmux.simulation.traffic import Ending, RequestOutcome, TrafficRequest
from llmux.simulation.virtual.study import PlottedRun, Study

TIMELINE = Timeline({"a": [(0.0, Phase.STARTING), (20.0, Phase.SERVING)], "<b>": []})
TTFTS = {"a": [1.0, 10.0, 100.0, math.inf], "<b>": []}
SERVED = RequestOutcome(TrafficRequest(0.0, "a", 1, 1), 0.0, 1.0, 2.0, 3.0, Ending.ANSWERED)
OTHER = RequestOutcome(TrafficRequest(0.0, "<b>", 1, 1), 0.0, 1.0, 2.0, 3.0, Ending.ANSWERED)
BOUND = LowerBound(0.5)


def report(*policies: str, models: tuple[str, ...] = ("a", "<b>"), seconds: float = 100.0) -> Report:
    names = policies or ("fifo",)
    runs = [
        run_figures(name, [SERVED, OTHER], Counter(a=1), lambda model: Shares(0.2, 0.0, 0.8, 0.0)) for name in names
    ]
    plotted = [PlottedRun(name, TIMELINE, seconds, TTFTS) for name in names]
    return Report("t", ["facts & figures"], models, Study(runs, plotted, BOUND))


def axes_of(figure: Any) -> list[Any]:
    return [axes for axes in figure.get_axes() if axes.get_visible()]


def test_bars_are_to_scale_and_in_the_colours_of_the_legend() -> None:
    axes = axes_of(_figure(report()))[0]
    bars = [(bar.get_facecolor()[0], bar.get_paths()[0].get_extents()) for bar in axes.collections]
    starting, serving = ((extents.x0, extents.x1) for _, extents in bars)
    assert starting == (0.0, pytest.approx(20.0, abs=0.1))
    assert serving == (pytest.approx(20.0, abs=0.1), pytest.approx(100.0))
    shown = ["#" + "".join(f"{round(part * 255):02X}" for part in colour[:3]) for colour, _ in bars]
    assert shown == [PHASE_COLOURS[Phase.WAKING], PHASE_COLOURS[Phase.SERVING]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "<b>"]


@pytest.mark.parametrize(("seconds", "label"), [(600.0, "s"), (601.0, "min"), (3 * 3600.0, "min"), (86_400.0, "h")])
def test_the_time_axis_has_the_unit_of_its_length(seconds: float, label: str) -> None:
    axes = axes_of(_figure(report(seconds=seconds)))[0]
    assert axes.get_xlabel() == f"time since the trace began ({label})"


def test_every_policy_has_rows_and_curves_of_its_own_on_common_axes() -> None:
    figure = _figure(report("fifo", "adaptive"))
    first, second, whole, *panels = axes_of(figure)
    assert [axes.get_title("left").partition(":")[0] for axes in (first, second)] == ["fifo", "adaptive"]
    assert first.get_xlim() == second.get_xlim()
    assert [panel.get_title("left") for panel in (whole, *panels)] == ["all models", "a", "<b>"]
    assert {panel.get_xlim() for panel in (whole, *panels)} == {whole.get_xlim()}
    assert [line.get_color() for line in whole.lines][:2] == list(CURVE_COLOURS[:2])
    assert len(whole.lines) == 2, "of a bound there is no distribution"
    assert len({str(line.get_linestyle()) for line in panels[0].lines}) == 2, "policies differ not only in colour"
    assert all(panel.get_xlabel() == "time to first token (s)" for panel in (whole, *panels))
    legends = [[text.get_text() for text in part.legends[0].get_texts()] for part in figure.subfigs]
    assert legends[1] == ["fifo", "adaptive"]
    assert legends[0] == ["waking or starting", "serving", "on the GPU, idle", "draining", "leaving"]


def test_the_axis_of_first_tokens_has_legible_labels_however_short_they_were() -> None:
    drawn = report()
    plotted = [replace(run, ttfts={"a": [0.5, 2.0]}) for run in drawn.study.plotted]
    figure = _figure(replace(drawn, study=replace(drawn.study, plotted=plotted)))
    figure.canvas.draw()
    labels = [label.get_text() for label in axes_of(figure)[1].get_xticklabels(which="both")]
    assert {"0.1", "1"} <= {*labels}
    assert not [label for label in labels if "$" in label]


def test_the_time_of_a_gpu_lease_is_marked() -> None:
    drawn = report()
    leases = (LeaseTimes("GPU lease 1", 5.0, 10.0, 60.0), LeaseTimes("2", 70.0), LeaseTimes("3", 70.0, 90.0))
    plotted = [replace(run, leases=leases) for run in drawn.study.plotted]
    figure = _figure(replace(drawn, study=replace(drawn.study, plotted=plotted)))
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes_of(figure)[0].patches]
    assert spans == [(10.0, 60.0), (90.0, 100.0)], "from when it was held until its end or that of the run"
    (legend,) = figure.subfigs[0].legends
    assert legend.get_texts()[-1].get_text() == "a GPU lease is held"


def test_a_curve_ends_at_the_share_that_was_served() -> None:
    times, shares = _curve([1.0, 10.0, 100.0, math.inf], 100.0)
    assert times[-1] == 100.0
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 75.0)
    assert _curve([], 100.0)[1][-1] == 0.0


def test_an_svg_is_well_formed_whatever_models_are_called(tmp_path: Path) -> None:
    file = tmp_path / "report.svg"
    write_plot(file, report(models=("a", "<b>", "$x_1$")))
    root = ElementTree.fromstring(file.read_bytes())
    texts = {(element.text or "").strip() for element in root.iter()}
    assert {"<b>", "$x_1$", "time to first token (s)"} <= texts


def test_the_same_report_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        write_plot(tmp_path / name, report())
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_page_holds_everything_itself(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_plot(file, report())
    text = file.read_text()
    assert "facts &amp; figures" in text
    assert text.count("<svg") == 1
    assert "&lt;b&gt;" in text and "lower bound" in text
    assert "<?xml" not in text and "<!DOCTYPE" not in text
    assert not re.search(r"""(src|href)=["'](?!#)|@import|url\((?!#)""", text), (
        "the page wants something from elsewhere"
    )


def test_a_png(tmp_path: Path) -> None:
    file = tmp_path / "report.png"
    write_plot(file, report())
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width == 1650 and height > 500


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_without_matplotlib_the_error_names_cause_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r"needs matplotlib, which is not installed; install it with: pip install 'llmux-gateway\[plot\]'"
    with pytest.raises(PlotLibraryMissing, match=message):
        check_plot_file(tmp_path / f"report{suffix}")
    with pytest.raises(PlotLibraryMissing):
        write_plot(tmp_path / f"report{suffix}", report())


def test_matplotlib_is_not_imported_by_the_command_line() -> None:
    program = "import sys, llmux.cli.main; print({'matplotlib', 'numpy'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PlotFailed, match=r"must be .html, .svg or .png"):
        check_plot_file(tmp_path / "report.pdf")
    with pytest.raises(PlotFailed, match="does not exist"):
        check_plot_file(tmp_path / "none" / "report.png")
    check_plot_file(tmp_path / "report.HTML")
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(PlotFailed, match="cannot be written: Is a directory"):
        write_plot(tmp_path / "taken.html", report())
