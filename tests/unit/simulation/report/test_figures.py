from dataclasses import replace

import pytest

from llmux.simulation.report.fate import Fate
from llmux.simulation.report.figures import Distribution, figures_of
from llmux.simulation.virtual.timeline import Shares

SHARE = Shares(0.1, 0.2, 0.3, 0.4)
SERVED = Fate("a", 10.0, 12.0, 13.0, 20.0, True)
LOST = Fate("a", 10.0, None, None, 310.0, False)


def test_a_distribution() -> None:
    assert Distribution.of([4.0, 1.0, 3.0, 2.0]) == Distribution(2.5, 2.0, 4.0, 4.0, 4.0)
    assert Distribution.of([]) == Distribution(None, None, None, None, None)


def test_durations_count_from_the_arrival_and_are_of_the_served() -> None:
    figures = figures_of([SERVED, LOST], 3, SHARE, 7.0)
    assert (figures.requests, figures.unserved, figures.switches, figures.starvation) == (2, 1, 3, 7.0)
    assert (figures.wait.max, figures.ttft.max, figures.latency.max) == (2.0, 3.0, 10.0)


def test_who_was_not_served_was_not_served_in_time() -> None:
    late = replace(SERVED, first_token_at=18.0)
    assert figures_of([SERVED, late, LOST, LOST], 0, SHARE, 0.0).within == {5: 0.25, 10: 0.5, 30: 0.5}


def test_nothing_at_all() -> None:
    figures = figures_of([], 0, SHARE, 0.0)
    assert figures.ttft.mean is None
    assert figures.within == {5: pytest.approx(0), 10: pytest.approx(0), 30: pytest.approx(0)}
