"""How numbers and times are written."""

import pytest

from llmux.simulation.demo.observation import ModelView, Phase, Sample
from llmux.simulation.demo.style import axis_line, bar, duration, joined, strip_line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0, "0.00 s"), (0.994, "0.99 s"), (0.996, "1.0 s"), (12.34, "12.3 s"), (59.96, "60 s")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_bar_is_no_longer_than_its_room_but_its_number_is_right() -> None:
    assert bar(0, 4, "x", "").plain == "–"
    assert bar(3, 4, "x", "").plain == "xxx 3"
    assert bar(30, 4, "x", "").plain == "xxxx 30"


@pytest.mark.parametrize(("start", "end"), [(0.0, 25.0), (3.3, 33.3), (0.0, 0.7), (0.0, 3600.0)])
def test_an_axis_fits_and_its_marks_stand_where_they_belong(start: float, end: float) -> None:
    cells = 60
    text = axis_line(start, end, cells).plain
    assert len(text) <= cells
    marks = text.split(" s")[:-1]
    assert marks
    position = 0
    for mark in marks:
        position += len(mark) - len(mark.lstrip())
        at = start + position / cells * (end - start)
        assert at == pytest.approx(float(mark), abs=(end - start) / cells)
        position += len(mark.lstrip()) + len(" s")


def test_a_strip_has_a_sign_for_every_part() -> None:
    view = ModelView("llama", Phase.SERVING, 0.0, 1, 0, 0.0)
    assert strip_line([Sample(1.0, (view,))], "llama", 0.0, 4.0, 4).plain == " █  "


def test_parts_are_joined_by_dots() -> None:
    assert joined(["a", ("b", "red"), "c"]).plain == "a · b · c"
