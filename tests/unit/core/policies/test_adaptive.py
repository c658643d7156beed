"""The two rules of the policy adaptive, and what bounds them."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.core.events import SwitchRequested
from llmux.core.eviction import Drain
from llmux.core.policies.adaptive import (
    DRAINING_STAY_MAX_SECONDS,
    FREEZING_STAY_MAX_SECONDS,
    STAY_PER_LEAVE,
    WAITING_SHARE,
    Adaptive,
)
from llmux.core.policies.base import Bring, Candidate, Incumbent, Stay, Waiting, WaitingModel
from llmux.core.settings import Limits, ModelSpec
from llmux.core.switch_costs import UNKNOWN_SECONDS
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD
from tests.support.core_truth import Fates, Place
from tests.unit.core.policies.test_policies import View, switch_begins, three

DRAINING = Incumbent("a", 100.0, 4, 0, None, residence_seconds=2.0)
IDLE = Incumbent("a", 100.0, 0, 0, 101.0)
FREEZING = replace(
    DRAINING,
    can_freeze=True,
    residence_seconds=10.0,
    prefill_seconds=0.05,
    pause_seconds=8.0,
)
UNREAD = replace(FREEZING, awaiting_first_token=3)
WAITING_200 = Waiting(1, 200.0)


def waits(model: str = "b", since: float = 100.0, depth: int = 1, weight: float = 1.0) -> Candidate:
    return Candidate(model, since, depth, weight)


def quantum(
    leaving: Incumbent, switch: float | None = 2.0, now: float = 100.0, waiting: Waiting = WAITING_200
) -> float:
    view = View([waits()], [leaving], switch, waiting)  # type: ignore[arg-type]
    return Adaptive().quantum_seconds(leaving, "b", view, now)


def stays_until(view: View, now: float) -> float:
    choice = Adaptive().choose(view, now)
    assert isinstance(choice, Stay)
    return choice.until


def test_an_idle_model_leaves_at_once():
    assert Adaptive().choose(View([waits()], [IDLE], 2.0), 101.0) == Bring("b")


def test_without_incumbents_or_candidates():
    assert Adaptive().choose(View([waits()], []), 100.0) == Bring("b")
    assert Adaptive().choose(View([], [DRAINING]), 100.0) == Stay(float("inf"))


@pytest.mark.parametrize(
    ("switch", "in_flight", "seconds"),
    [
        (2.0, 1, STAY_PER_LEAVE * (2 + 2 * math.log(2))),
        (2.0, 4, STAY_PER_LEAVE * (2 + 2 * math.log(5))),
        (8.0, 4, STAY_PER_LEAVE * (8 + 2 * math.log(5))),
        (30.0, 4, DRAINING_STAY_MAX_SECONDS),
        (50.0, 4, 150.0),
    ],
)
def test_a_model_that_must_drain_stays_in_proportion_to_what_leaving_takes(switch, in_flight, seconds):
    leaving = replace(DRAINING, in_flight=in_flight)
    assert quantum(leaving, switch) == pytest.approx(seconds)
    view = View([waits()], [leaving], switch)
    assert stays_until(view, 100.0) == pytest.approx(100.0 + seconds)
    assert Adaptive().choose(view, 100.0 + seconds + 0.01) == Bring("b")


@pytest.mark.parametrize(("switch", "residence", "turn"), [(2.0, 10.0, 10.0), (8.0, 9.0, 12.0), (0.5, 1.0, 1.0)])
def test_a_turn_is_an_answer_or_the_balance_of_switching_and_waiting(switch, residence, turn):
    assert quantum(replace(FREEZING, residence_seconds=residence), switch) == pytest.approx(turn)


def test_answers_of_unknown_length_are_taken_for_middling_ones_and_then_for_long_ones():
    unknown = replace(FREEZING, residence_seconds=None, prefill_seconds=None, pause_seconds=None)
    assert quantum(unknown) == UNKNOWN_SECONDS
    # Those that have been in flight for longer are expected to take as long again.
    assert quantum(unknown, now=140.0) == 40.0
    few = replace(unknown, in_flight=1)
    assert quantum(few, now=112.0, waiting=Waiting(1, 1.0)) > 12.0
    assert quantum(few, now=140.0, waiting=Waiting(1, 1.0)) == 40.0


def test_while_a_cost_is_unknown_switching_is_free():
    assert quantum(FREEZING, None) == 10.0
    assert quantum(DRAINING, None) == pytest.approx(STAY_PER_LEAVE * 2 * math.log(5))


def test_beyond_its_turn_a_model_stays_until_everybody_has_a_first_token():
    for unread in ({"awaiting_first_token": 3}, {"queue_depth": 3}):
        leaving = replace(FREEZING, **unread)
        assert quantum(leaving, now=112.0) == pytest.approx(12.0 + 3 * 0.05), "looked at again when they have been read"
        assert stays_until(View([waits()], [leaving], 2.0), 112.0) == pytest.approx(112.15)
    assert quantum(FREEZING, now=112.0) == 10.0


def test_beyond_its_turn_a_model_stays_while_the_answers_that_end_save_more_than_the_others_wait():
    """200 requests wait. Each answer that ends saves its own pause of 8 s, and 0.05 s for each of the 200."""
    least = 10 * WAITING_SHARE * 200 / (8 + 0.05 * 200)
    for in_flight, stays in ((55, False), (56, True)):
        assert quantum(replace(FREEZING, in_flight=in_flight), now=112.0) > 12.0 if stays else 10.0
    assert 55 < least < 56
    many = replace(FREEZING, in_flight=150)
    assert quantum(many, now=112.0) == pytest.approx(12.0 + 10 * math.log(150 / least)), "when so few are left"
    assert quantum(replace(many, weight=0.1), now=112.0) > 12.0, "0.05 s for each of the 200 would do alone"
    assert quantum(replace(many, arrivals_per_second=9.3), now=112.0) > 12.0
    assert quantum(replace(many, arrivals_per_second=9.6), now=112.0) == 10.0, "as many come as end"
    assert quantum(replace(many, prefill_seconds=0.02), now=112.0, waiting=Waiting(1, 1200.0)) == 10.0


@pytest.mark.parametrize(
    ("each", "stays"),
    [
        ((), 229.2),
        ((WaitingModel(100.0, 100.0, 0.0),), 0.9 * 100 - 2),
        ((WaitingModel(100.0, 300.0, 9.0), WaitingModel(100.0, 100.0, 9.0)), 0.9 * 100 - 2 - 9 - 2),
        ((WaitingModel(100.0, 60.0, 9.0),), 52.0),
        ((WaitingModel(100.0, 30.0, 9.0),), 50.0),
        ((WaitingModel(100.0, math.inf, 9.0),), 229.2),
    ],
)
def test_beyond_its_turn_a_model_stays_for_no_longer_than_leaves_the_others_their_time(each, stays):
    long = replace(FREEZING, in_flight=10_000, residence_seconds=50.0)
    assert quantum(long, now=100.0 + 50.0, waiting=replace(WAITING_200, each=each)) == pytest.approx(stays, abs=0.5)


def test_a_model_with_more_requests_than_places_does_not_leave_for_the_time_outs_of_others():
    one = WaitingModel(100.0, 10.0, 0.0)
    waiting = replace(WAITING_200, each=(one,))
    assert quantum(replace(FREEZING, queue_depth=3), now=112.0, waiting=waiting) == pytest.approx(12.0 + 3 * 0.05)
    assert quantum(UNREAD, now=112.0, waiting=waiting) == 10.0


def test_until_a_pause_is_known_it_is_as_long_as_middling_turns_of_the_others():
    leaving = replace(FREEZING, in_flight=60, pause_seconds=None, prefill_seconds=0.0)
    # 10 s and two switches of 2 s: 14 s for each of six answers a second.
    assert quantum(leaving, now=112.0, waiting=Waiting(1, 83.0 / WAITING_SHARE)) > 12.0
    assert quantum(leaving, now=112.0, waiting=Waiting(1, 85.0 / WAITING_SHARE)) == 10.0
    assert quantum(leaving, now=112.0, waiting=Waiting(2, 85.0 / WAITING_SHARE)) > 12.0


def test_it_is_looked_at_again_when_the_turn_is_over_to_the_last_bit():
    """At 0.1 + 0.2 seconds, what has passed since 0.1 is a little less than 0.2."""
    leaving = replace(UNREAD, since=0.1, residence_seconds=0.2)
    assert quantum(leaving, 0.1, now=0.1 + 0.2) > 0.2


LONGEST_STAYS = (
    (UNREAD, 2.0, FREEZING_STAY_MAX_SECONDS),
    (replace(UNREAD, residence_seconds=None), 2.0, FREEZING_STAY_MAX_SECONDS),
    (replace(UNREAD, residence_seconds=10.0), 90.0, 270.0),
)


@pytest.mark.parametrize(("leaving", "switch", "longest"), LONGEST_STAYS)
def test_a_stay_is_bounded(leaving, switch, longest):
    assert quantum(leaving, switch, now=100.0 + longest - 0.01) == longest
    assert quantum(leaving, switch, now=100.0 + longest + 5.0) <= longest


@given(
    st.builds(
        Incumbent,
        st.just("a"),
        st.just(100.0),
        in_flight=st.integers(1, 300),
        queue_depth=st.integers(0, 3),
        idle_since=st.none(),
        can_freeze=st.booleans(),
        weight=st.floats(1e-3, 1e3),
        awaiting_first_token=st.integers(0, 3),
        arrivals_per_second=st.floats(0, 1e3),
        residence_seconds=st.none() | st.floats(0, 1e4),
        prefill_seconds=st.none() | st.floats(0, 1e3),
        pause_seconds=st.none() | st.floats(0, 1e4),
    ),
    st.builds(Waiting, st.integers(0, 8), st.floats(0, 1e6)),
    st.floats(0, 100),
    st.floats(0, 1000),
)
def test_no_stay_is_longer_than_its_maximum_and_none_is_looked_at_all_the_time(leaving, waiting, switch, elapsed):
    now = 100.0 + elapsed
    elapsed = now - leaving.since  # As the policy sees it: not what was added, in floating point.
    found = quantum(leaving, switch, now=now, waiting=waiting)
    longest = Adaptive().quantum_max_seconds(switch, can_freeze=leaving.can_freeze)
    assert 0 <= found <= longest
    assert not elapsed < found < min(longest, elapsed + 1e-3) or found == quantum(leaving, switch, waiting=waiting)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([waits("b", depth=1), waits("c", depth=5)], "c"),
        ([waits("b", since=80.0), waits("c", since=99.0)], "b"),
        ([waits("b", weight=3.0), waits("c", depth=2)], "b"),
    ],
)
def test_the_most_weighted_work_goes_first(others, chosen):
    assert Adaptive().choose(View(others, [IDLE], 2.0), 102.0) == Bring(chosen)


def test_an_overdue_candidate_does_not_cut_a_stay_short():
    """20 s of switching are worth the longest stay to a model that must drain; max_wait_seconds is 15 s."""
    driver = three(Adaptive())
    driver.scheduler._world.costs.observe_evict("a", 10.0)
    driver.scheduler._world.costs.observe_wake("b", 10.0)
    driver.arrive("a")
    driver.finish_wake("a")
    driver.arrive("b")
    driver.answer(next(iter(driver.requests.values())))
    assert switch_begins(driver, before=200.0) == (DRAINING_STAY_MAX_SECONDS, "b")


def test_the_wait_bound_counts_the_longest_stay():
    driver = three(Adaptive())
    limits = driver.limits
    stay = max(FREEZING_STAY_MAX_SECONDS, DRAINING_STAY_MAX_SECONDS + limits.drain_timeout_seconds)
    assert driver.scheduler.wait_bound(2.0) == limits.max_wait_seconds + 2.0 + 2 * (stay + 2.0)


def test_long_answers_do_not_hold_up_another_model_where_they_can_be_frozen():
    specs = [ModelSpec(name, OFFLOAD, drain=Drain.FREEZE) for name in "ab"]
    fates = Fates()
    fates.request = lambda request: (300.0 if request.model == "a" else 1.0, True)  # type: ignore[method-assign]
    driver = CoreDriver(specs, Adaptive(), Limits(), fates=fates, check_bound=True)
    long = driver.arrive("a")
    driver.run_until(20.0)
    driver.answer(long)
    driver.run_until(40.0)
    short = driver.arrive("b")
    driver.run_until(44.0)
    assert short.place is Place.ENDED and short.error is None
    driver.run_until(900.0)
    assert long.place is Place.ENDED and long.error is None


def test_a_command_does_not_wait_for_the_end_of_a_stay():
    driver = three(Adaptive())
    driver.arrive("a")
    driver.finish_wake("a")
    driver.run_until(6.0)
    driver.command(SwitchRequested, "b")
    assert driver.scheduler.switching() == ("a", "b")
