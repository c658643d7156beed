import math
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from llmux.simulation.report.fate import Fate
from llmux.simulation.report.figures import Distribution, LowerBound, RunFigures, figures_of
from llmux.simulation.report.files import PlotFailed, check_plot_file, write_plot
from llmux.simulation.report.picture import PHASE_COLOURS, PlottedRun, curves, gantt, time_text
from llmux.simulation.report.raster import PillowMissing
from llmux.simulation.report.shapes import Box, Line
from llmux.simulation.report.vector import svg
from llmux.simulation.virtual.timeline import Phase, Shares, Timeline

TIMELINE = Timeline({"a": [(0.0, Phase.WAKING), (20.0, Phase.SERVING)], "<b>": []})
RUN = PlottedRun("fifo", TIMELINE, 100.0, {"a": [1.0, 10.0, 100.0, math.inf], "<b>": []})
FIGURES = figures_of([Fate("a", 0.0, 1.0, 2.0, 3.0, True)], 1, Shares(0.2, 0.0, 0.8, 0.0), 1.0)
RUNS = [RunFigures("fifo", FIGURES, {"a": FIGURES, "<b>": FIGURES})]
BOUND = LowerBound(Distribution.of([0.5]), {5: 1.0}, [0.5])


def test_the_gantt_picture_is_to_scale() -> None:
    boxes = [shape for shape in gantt([RUN], ["a", "<b>"]).shapes if isinstance(shape, Box) and shape.hint]
    assert [box.colour for box in boxes] == [PHASE_COLOURS[Phase.WAKING], PHASE_COLOURS[Phase.SERVING]]
    assert boxes[0].width / (boxes[0].width + boxes[1].width) == pytest.approx(0.2, abs=0.01)
    assert boxes[1].hint == "a: serving, 20.0 to 100.0 s"


def test_a_curve_ends_at_the_share_that_was_served() -> None:
    picture = curves([RUN], ["a"])
    (curve,) = [shape for shape in picture.shapes if isinstance(shape, Line) and len(shape.points) > 2]
    heights = [y for _, y in curve.points]
    frame = [shape.points[0][1] for shape in picture.shapes if isinstance(shape, Line) and len(shape.points) == 2]
    bottom, top = max(frame), min(frame)
    assert heights == sorted(heights, reverse=True)
    assert heights[0] == bottom
    assert heights[-1] == pytest.approx(bottom - 0.75 * (bottom - top))


def test_svg_is_well_formed_whatever_models_are_called() -> None:
    for picture in (gantt([RUN], ["a", "<b>"]), curves([RUN], ["a", "<b>"], [0.5])):
        root = ElementTree.fromstring(svg(picture))
        assert any("<b>" in (element.text or "") for element in root.iter())


def test_the_page_holds_everything_itself(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_plot(file, "t", ["facts & figures"], RUNS, BOUND, [gantt([RUN], ["a"]), curves([RUN], ["a"])])
    text = file.read_text()
    assert "facts &amp; figures" in text
    assert text.count("<svg") == 2
    assert "&lt;b&gt;" in text and "lower bound" in text
    assert not re.search(r"(src|href)=|@import|url\(", text), "the page wants something from elsewhere"


def test_a_png(tmp_path: Path) -> None:
    file = tmp_path / "report.png"
    pictures = [gantt([RUN], ["a"]), curves([RUN], ["a"])]
    write_plot(file, "t", [], RUNS, BOUND, pictures)
    with Image.open(file) as image:
        assert image.size == (2 * pictures[0].width, 2 * sum(picture.height for picture in pictures))
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 5


def test_without_pillow_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(PillowMissing, match=r"pip install 'llmux-gateway\[plot\]'"):
        check_plot_file(tmp_path / "report.png")
    with pytest.raises(PillowMissing):
        write_plot(tmp_path / "report.png", "t", [], RUNS, BOUND, [gantt([RUN], ["a"])])


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PlotFailed, match=r"must be .png or .html"):
        check_plot_file(tmp_path / "report.pdf")
    with pytest.raises(PlotFailed, match="does not exist"):
        check_plot_file(tmp_path / "none" / "report.png")
    check_plot_file(tmp_path / "report.HTML")
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(PlotFailed, match="cannot be written: Is a directory"):
        write_plot(tmp_path / "taken.html", "t", [], RUNS, BOUND, [])


def test_times() -> None:
    assert [time_text(seconds) for seconds in (90, 120, 3600, 7200, 7260)] == [
        "90 s",
        "2 min",
        "60 min",
        "2 h",
        "121 min",
    ]
