import io

import pytest
from rich.console import Console

from llmux.simulation.report.fate import Fate
from llmux.simulation.report.figures import Distribution, LowerBound, RunFigures, figures_of
from llmux.simulation.report.table import render, seconds_text
from llmux.simulation.virtual.timeline import Shares

FATES = [Fate("a", 0.0, 1.0, 2.0, 3.0, True), Fate("b", 0.0, None, None, 300.0, False)]
SHARE = Shares(0.1, 0.2, 0.3, 0.4)
BOUND = LowerBound(Distribution.of([0.5]), {5: 1.0, 10: 1.0, 30: 1.0}, [0.5])


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_as_many_digits_as_tell_something(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def test_each_policy_each_model_and_the_bound_have_a_row() -> None:
    models = {fate.model: figures_of([fate], 1, SHARE, 0.0) for fate in FATES}
    run = RunFigures("fifo", figures_of(FATES, 2, SHARE, 9.0), models)
    file = io.StringIO()
    Console(file=file, width=120).print(render([run], BOUND))
    lines = [line.split() for line in file.getvalue().splitlines()]
    assert ["fifo", "2", "1", "2.00", "2.00", "2.00", "2.00", "2.00", "50%", "50%", "50%"] in lines
    assert ["b", "1", "1", "–", "–", "–", "–", "–", "0%", "0%", "0%"] in lines
    assert ["lower", "bound", *["0.500"] * 5, "100%", "100%", "100%"] in lines
    assert ["fifo", *["3.00"] * 5, "2", "9.00", "30.0%", "10.0%", "20.0%", "40.0%"] in lines
