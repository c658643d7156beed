"""Phases add up to shares of time and to strips, and histories to switches."""

from dataclasses import asdict

import pytest

from llmux.core.eviction import STOP, Eviction
from llmux.core.model import Transition
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking
from llmux.errors import FailureReason
from llmux.simulation.residency import Phase, Shares, SwitchLog, Timeline, phase_of

OFFLOAD = Eviction.parse("offload+keep_running")

TIMELINE = Timeline(
    {
        "a": [(0.0, Phase.WAKING), (2.0, Phase.SERVING), (5.0, Phase.LEAVING), (6.0, Phase.ASLEEP)],
        "b": [(4.0, Phase.WAKING), (8.0, Phase.IDLE)],
    }
)


def test_spans_end_at_the_end() -> None:
    assert list(TIMELINE.spans("b", 10.0)) == [(4.0, 8.0, Phase.WAKING), (8.0, 10.0, Phase.IDLE)]
    assert list(TIMELINE.spans("b", 6.0)) == [(4.0, 6.0, Phase.WAKING)]


def test_switching_takes_precedence_over_what_other_models_do() -> None:
    shares = TIMELINE.shares(10.0)
    assert asdict(shares) == pytest.approx({"switching": 0.6, "draining": 0.0, "serving": 0.2, "idle": 0.2})


def test_shares_of_one_model() -> None:
    shares = TIMELINE.shares(10.0, ["a"])
    assert asdict(shares) == pytest.approx({"switching": 0.3, "draining": 0.0, "serving": 0.3, "idle": 0.4})


def test_no_time_at_all() -> None:
    assert Timeline({"a": []}).shares(0.0) == Shares(0.0, 0.0, 0.0, 0.0)


def test_entries_at_the_same_time_count_in_their_order() -> None:
    timeline = Timeline({"a": [(0.0, Phase.SERVING), (0.0, Phase.IDLE), (4.0, Phase.LEAVING), (4.0, Phase.ASLEEP)]})
    assert timeline.shares(8.0) == Shares(switching=0.0, draining=0.0, serving=0.0, idle=1.0)


def test_draining_is_told_apart_from_switching() -> None:
    timeline = Timeline()
    for at, phase in ((0.0, Phase.SERVING), (1.0, Phase.DRAINING), (3.0, Phase.LEAVING), (7.0, Phase.IDLE)):
        timeline.enter("m", phase, at)
    assert timeline.shares(15.0) == Shares(switching=4 / 15, draining=2 / 15, serving=1 / 15, idle=8 / 15)


def test_a_switch_takes_precedence_over_a_serving_model() -> None:
    both = Timeline({"a": [(0.0, Phase.SERVING)], "b": [(0.0, Phase.WAKING)]})
    assert both.shares(1.0) == Shares(switching=1.0, draining=0.0, serving=0.0, idle=0.0)


def test_a_phase_is_recorded_once() -> None:
    timeline = Timeline()
    for at, phase in ((0.0, Phase.IDLE), (1.0, Phase.IDLE), (2.0, Phase.SERVING)):
        timeline.enter("m", phase, at)
    assert timeline.entries == {"m": [(0.0, Phase.IDLE), (2.0, Phase.SERVING)]}


def test_each_cell_of_a_strip_shows_the_longest_phase() -> None:
    entries = [(1.0, Phase.WAKING), (2.0, Phase.SERVING), (7.0, Phase.LEAVING), (7.2, Phase.ASLEEP)]
    timeline = Timeline({"a": entries})
    off, asleep, waking, serving = Phase.NOT_STARTED, Phase.ASLEEP, Phase.WAKING, Phase.SERVING
    assert timeline.strip("a", 0.0, 10.0, 10) == [off, waking, *[serving] * 5, asleep, asleep, asleep]
    assert timeline.strip("a", 0.0, 10.0, 2) == [serving, asleep]


def test_a_strip_of_a_part_of_the_time() -> None:
    entries = [(0.0, Phase.IDLE), (0.4, Phase.SERVING), (1.1, Phase.DRAINING), (1.4, Phase.LEAVING)]
    timeline = Timeline({"m": [*entries, (3.0, Phase.ASLEEP)]})
    cells = timeline.strip("m", -1.0, 5.0, 6)
    assert cells == [Phase.NOT_STARTED, Phase.SERVING, Phase.LEAVING, Phase.LEAVING, Phase.ASLEEP, Phase.ASLEEP]
    assert timeline.strip("m", 1.0, 3.0, 2) == cells[2:4]
    assert timeline.strip("unknown", 0.0, 1.0, 1) == [Phase.NOT_STARTED]


@pytest.mark.parametrize(
    ("state", "in_flight", "phase"),
    [
        (Cold(), 0, Phase.NOT_STARTED),
        (Asleep(OFFLOAD), 0, Phase.ASLEEP),
        (Waking(1.0, None), 0, Phase.STARTING),
        (Waking(1.0, OFFLOAD), 0, Phase.WAKING),
        (Serving(1.0), 1, Phase.SERVING),
        (Serving(1.0), 0, Phase.IDLE),
        (Draining(1.0, 0.0, 9.0, OFFLOAD), 1, Phase.DRAINING),
        (Evicting(1.0, OFFLOAD), 0, Phase.LEAVING),
        (Evicting(1.0, STOP, asleep=OFFLOAD), 0, Phase.ASLEEP),
        (Failed(FailureReason("x"), 9.0, True), 0, Phase.FAILED),
        (Stuck(FailureReason("x"), 9.0), 0, Phase.FAILED),
    ],
)
def test_the_phase_of_every_state(state: State, in_flight: int, phase: Phase) -> None:
    assert phase_of(state, is_busy=bool(in_flight)) is phase


def transition(at: float, before: State, after: State) -> Transition:
    return Transition(at, "Event", before, after)


def test_a_first_start_has_no_previous_model() -> None:
    log = SwitchLog()
    log.add(
        [
            ("a", transition(1.0, Cold(), Waking(1.0, None))),
            ("a", transition(3.0, Waking(1.0, None), Serving(3.0))),
        ]
    )
    [switch] = log.switches
    assert (switch.previous, switch.model, switch.from_cold, switch.ended_at) == ("", "a", True, 3.0)
    assert (switch.drain_seconds, switch.evict_seconds, switch.wake_seconds) == (0.0, 0.0, 2.0)


def test_a_switch_is_drain_and_evict_of_one_model_and_wake_of_another() -> None:
    draining = Draining(10.0, 3.0, 130.0, OFFLOAD)
    log = SwitchLog()
    log.add(
        [
            ("a", transition(10.0, Serving(3.0), draining)),
            ("a", transition(11.0, draining, Evicting(11.0, OFFLOAD))),
            ("a", transition(11.5, Evicting(11.0, OFFLOAD), Asleep(OFFLOAD))),
            ("b", transition(11.5, Asleep(OFFLOAD), Waking(11.5, OFFLOAD))),
            ("b", transition(12.25, Waking(11.5, OFFLOAD), Serving(12.25))),
        ]
    )
    [switch] = log.switches
    assert (switch.previous, switch.model, switch.from_cold) == ("a", "b", False)
    assert (switch.drain_seconds, switch.evict_seconds, switch.wake_seconds) == (1.0, 0.5, 0.75)
    assert switch.total_seconds == 2.25


def test_on_several_gpus_a_model_comes_for_one_that_left_the_same_gpu() -> None:
    """Both GPUs switch at the same time: a leaves for b, c for d, and then both b and d for e, which needs both."""

    def leaves(at: float) -> list[Transition]:
        evicting = Evicting(at, OFFLOAD)
        return [transition(at, Serving(0.0), evicting), transition(at + 1, evicting, Asleep(OFFLOAD))]

    def comes(at: float) -> list[Transition]:
        waking = Waking(at, OFFLOAD)
        return [transition(at, Asleep(OFFLOAD), waking), transition(at + 1, waking, Serving(at + 1))]

    log = SwitchLog()
    gpus = {"a": ["0"], "b": ["0"], "c": ["1"], "d": ["1"], "e": ["0", "1"]}
    b, d = comes(2.0), comes(1.5)
    log.read({"a": leaves(0.0), "c": leaves(0.5), "d": d, "b": b}, gpus)
    log.read({"b": [*b, *leaves(5.0)], "d": [*d, *leaves(5.5)], "e": comes(7.0)}, {"a": [], "e": ["0", "1"]})
    assert [(switch.previous, switch.model) for switch in log.switches] == [("c", "d"), ("a", "b"), ("d", "e")]


def test_a_sleeping_model_that_is_stopped_did_not_leave_the_gpu() -> None:
    log = SwitchLog()
    log.add(
        [
            ("a", transition(1.0, Asleep(OFFLOAD), Evicting(1.0, STOP, asleep=OFFLOAD))),
            ("a", transition(2.0, Evicting(1.0, STOP, asleep=OFFLOAD), Cold())),
            ("b", transition(2.0, Cold(), Waking(2.0, None))),
            ("b", transition(3.0, Waking(2.0, None), Serving(3.0))),
        ]
    )
    assert [switch.previous for switch in log.switches] == [""]


def test_a_drain_that_was_called_off_is_no_switch() -> None:
    draining = Draining(10.0, 3.0, 130.0, OFFLOAD)
    log = SwitchLog()
    log.add([("a", transition(10.0, Serving(3.0), draining)), ("a", transition(11.0, draining, Serving(3.0)))])
    assert log.switches == []


def test_a_growing_history_is_read_once_and_in_order() -> None:
    woken = [transition(1.0, Cold(), Waking(1.0, None)), transition(2.0, Waking(1.0, None), Serving(2.0))]
    left = [
        transition(3.0, Serving(2.0), Evicting(3.0, OFFLOAD)),
        transition(4.0, Evicting(3.0, OFFLOAD), Asleep(OFFLOAD)),
    ]
    other = [transition(4.0, Cold(), Waking(4.0, None)), transition(6.0, Waking(4.0, None), Serving(6.0))]
    log = SwitchLog()
    log.read({"b": [], "a": []})
    assert log.switches == []
    log.read({"b": [], "a": woken})
    # The oldest transition of a has been dropped, and b's are listed first although they are later.
    log.read({"b": other, "a": [*woken[1:], *left]})
    log.read({"b": other, "a": left})
    assert [(switch.previous, switch.model, switch.ended_at) for switch in log.switches] == [
        ("", "a", 2.0),
        ("a", "b", 6.0),
    ]
