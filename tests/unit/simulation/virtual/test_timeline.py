import pytest

from llmux.simulation.virtual.timeline import Phase, Shares, Timeline

TIMELINE = Timeline(
    {
        "a": [(0.0, Phase.WAKING), (2.0, Phase.SERVING), (5.0, Phase.EVICTING), (6.0, Phase.OFF)],
        "b": [(4.0, Phase.WAKING), (8.0, Phase.IDLE)],
    }
)


def test_spans_end_at_the_end() -> None:
    assert list(TIMELINE.spans("b", 10.0)) == [(4.0, 8.0, Phase.WAKING), (8.0, 10.0, Phase.IDLE)]
    assert list(TIMELINE.spans("b", 6.0)) == [(4.0, 6.0, Phase.WAKING)]


def test_of_models_that_do_something_at_once_switching_counts_first() -> None:
    assert TIMELINE.shares(10.0) == Shares(switching=0.6, draining=0.0, serving=pytest.approx(0.2), idle=0.2)


def test_shares_of_one_model() -> None:
    assert TIMELINE.shares(10.0, ["a"]) == Shares(
        switching=pytest.approx(0.3), draining=0.0, serving=pytest.approx(0.3), idle=pytest.approx(0.4)
    )


def test_nothing_at_all() -> None:
    assert Timeline({"a": []}).shares(0.0) == Shares(0.0, 0.0, 0.0, 0.0)
