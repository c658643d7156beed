from llmux.simulation.report.strip import runs, strip
from llmux.simulation.virtual.timeline import Phase, Timeline

TIMELINE = Timeline({"a": [(1.0, Phase.WAKING), (2.0, Phase.SERVING), (7.0, Phase.EVICTING), (7.2, Phase.OFF)]})


def test_each_column_shows_what_was_done_for_the_most_part() -> None:
    off, waking, serving = Phase.OFF, Phase.WAKING, Phase.SERVING
    assert strip(TIMELINE, "a", 10.0, 10) == [off, waking, *[serving] * 5, off, off, off]
    assert strip(TIMELINE, "a", 10.0, 2) == [serving, off]


def test_equal_columns_are_one() -> None:
    assert list(runs([Phase.OFF, Phase.IDLE, Phase.IDLE])) == [(0, 1, Phase.OFF), (1, 3, Phase.IDLE)]
    assert list(runs([])) == []
