import pytest

from llmux.simulation.replay.switches import SwitchCounts, parse

SCRAPE = """# HELP llmux_switches_total Switches that succeeded.
# TYPE llmux_switches_total counter
llmux_switches_total{from="",to="a"} 1.0
llmux_switches_total{from="b",to="a"} 3.0
llmux_switches_total{from="a",to="b"} 2.0
# HELP llmux_switch_phase_seconds Duration of the phases of switches.
# TYPE llmux_switch_phase_seconds histogram
llmux_switch_phase_seconds_bucket{le="+Inf",phase="drain",to="a"} 4.0
llmux_switch_phase_seconds_count{phase="drain",to="a"} 4.0
llmux_switch_phase_seconds_sum{phase="drain",to="a"} 5.5
llmux_switch_phase_seconds_sum{phase="cooldown",to="a"} 100.0
llmux_switch_phase_seconds_sum{phase="sleep",to="b"} 1.25
llmux_switch_phase_seconds_sum{phase="wake",to="b"} 2.0
# HELP llmux_canary_seconds_total What asking the canaries has cost.
# TYPE llmux_canary_seconds_total counter
llmux_canary_seconds_total{model="a"} 0.5
llmux_canary_seconds_total{model="b"} 0.3
"""


def test_switches_and_their_times_are_added_up() -> None:
    counts = parse(SCRAPE)
    assert counts.by_model == {"a": 4, "b": 2}
    assert (counts.draining_seconds, counts.leaving_seconds, counts.coming_seconds) == (5.5, 1.25, 2.0)
    assert counts.evictions == 5


def test_what_a_switch_took_is_told_in_the_words_of_the_simulator() -> None:
    assert parse(SCRAPE).mean_costs == "evict=0.250,wake=0.333"
    assert SwitchCounts().mean_costs is None


def test_reading_again_what_was_frozen_can_be_taken_out_of_it() -> None:
    counts = parse(SCRAPE)
    assert counts.asking_seconds == pytest.approx(0.8)
    assert counts.mean_costs_if_asking_takes(0.1) == "evict=0.250,wake=0.300"


def test_only_what_came_since_counts() -> None:
    before = SwitchCounts()
    before.by_model["a"] = 3
    since = parse(SCRAPE).since(before)
    assert since.by_model == {"a": 1, "b": 2}
    assert since.draining_seconds == 5.5


def test_something_else_is_told_apart() -> None:
    with pytest.raises(ValueError, match="no llmux_switches"):
        parse("# TYPE up gauge\nup 1\n")
