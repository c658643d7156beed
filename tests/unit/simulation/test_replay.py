import pytest

from llmux.simulation.replay import Replayed, SwitchCounts, covered, parse_switches
from llmux.simulation.traffic import Ending, RequestOutcome, TrafficRequest

REQUEST = TrafficRequest(0.0, "a", 1, 1)
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


def test_overlapping_spans_count_once() -> None:
    assert covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.6), (None, 9.0), (8.0, None)]) == 4.0
    assert covered([]) == 0.0


def test_the_figures_are_those_of_a_simulation() -> None:
    counts = SwitchCounts(draining_seconds=1.0, leaving_seconds=0.5, waking_seconds=1.5)
    counts.by_model["a"] = 2
    outcomes = [
        RequestOutcome(REQUEST, 0.0, 3.0, 4.0, 6.0, Ending.ANSWERED),
        RequestOutcome(REQUEST, 1.0, 3.0, 4.5, 7.0, Ending.ANSWERED),
        RequestOutcome(REQUEST, 2.0, ended_at=3.0, problem="429: full"),
    ]
    replayed = Replayed(outcomes, counts, 10.0, 0.0, interrupted=False)
    run = replayed.figures("replay")
    assert (run.total.requests, run.total.unserved, run.total.switches) == (3, 1, 2)
    assert run.total.wait.max == 3.0
    assert run.total.ttft.max == 4.0
    assert run.total.share is not None
    assert run.total.share.switching == pytest.approx(0.2)
    assert run.total.share.draining == pytest.approx(0.1)
    assert run.total.share.serving == pytest.approx(0.3)
    assert run.total.share.idle == pytest.approx(0.4)
    assert run.models["a"].share is None
    assert replayed.problems() == [("429: full", 1)]


def test_a_replay_without_outcomes() -> None:
    run = Replayed([], SwitchCounts(), 0.0, 0.0, interrupted=True).figures("replay")
    assert run.total.requests == 0
    assert run.total.starvation == 0.0


def test_switches_and_their_times_are_added_up() -> None:
    counts = parse_switches(SCRAPE)
    assert counts.by_model == {"a": 4, "b": 2}
    assert (counts.draining_seconds, counts.leaving_seconds, counts.waking_seconds) == (5.5, 1.25, 2.0)
    assert counts.evictions == 5


def test_mean_durations_are_given_as_a_value_for_costs() -> None:
    assert parse_switches(SCRAPE).mean_costs == "evict=0.250,wake=0.333"
    assert SwitchCounts().mean_costs is None


def test_the_recompute_of_frozen_requests_can_be_left_out() -> None:
    counts = parse_switches(SCRAPE)
    assert counts.canary_seconds == pytest.approx(0.8)
    assert counts.mean_costs_without_recompute(0.1) == "evict=0.250,wake=0.300"


def test_earlier_switches_are_subtracted() -> None:
    before = SwitchCounts()
    before.by_model["a"] = 3
    since = parse_switches(SCRAPE).since(before)
    assert since.by_model == {"a": 1, "b": 2}
    assert since.draining_seconds == 5.5


def test_metrics_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="no llmux_switches"):
        parse_switches("# TYPE up gauge\nup 1\n")
