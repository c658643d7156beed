"""Turns of the policy adaptive: a quantum that pays for the switch, more where the model has fallen behind."""

from dataclasses import replace

import pytest

from llmux.core.events import SwitchRequested
from llmux.core.eviction import Drain
from llmux.core.policies.adaptive import CATCHING_UP_MAX_SECONDS, Adaptive
from llmux.core.policies.base import Bring, Candidate, Demand, Incumbent, Stay
from llmux.core.settings import Limits, ModelSpec
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD
from tests.support.core_truth import Fates, Place
from tests.unit.core.policies.test_policies import View, switch_begins, three

BUSY = Incumbent("a", 100.0, 4, 0, None, demand=Demand(1.0, 60.0))
IDLE = Incumbent("a", 100.0, 0, 0, 101.0)
BEHIND = replace(BUSY, awaiting_first_token=3, residence_seconds=10.0)
FREEZING = replace(BUSY, can_freeze=True, residence_seconds=10.0, prefill_seconds=0.1)


def waits(model: str = "b", since: float = 100.0, depth: int = 1, weight: float = 1.0) -> Candidate:
    return Candidate(model, since, depth, weight)


@pytest.mark.parametrize(("share", "cost", "quantum"), [(0.25, 2.0, 6.0), (0.25, 8.0, 24.0), (0.5, 2.0, 2.0)])
def test_a_busy_model_stays_for_a_quantum_in_proportion_to_the_cost(share, cost, quantum):
    policy, view = Adaptive(share), View([waits()], [BUSY], cost)
    assert policy.choose(view, 100.0) == Stay(100.0 + quantum)
    assert policy.choose(view, 100.0 + quantum) == Bring("b")


def test_an_idle_model_leaves_at_once():
    assert Adaptive().choose(View([waits()], [IDLE], 2.0), 101.0) == Bring("b")


@pytest.mark.parametrize(
    ("load", "quantum"),
    [(1.5, 24.0), (0.8, 24.0), (0.5, 8 / 0.35 - 8), (0.3, 8 / 0.49 - 8), (0.0, 8 / 0.55 - 8)],
)
def test_spare_time_may_be_spent_switching(load, quantum):
    leaving = replace(FREEZING, demand=Demand(load, 60.0))
    view = View([waits()], [leaving], 8.0)
    assert Adaptive().quantum_seconds(leaving, "b", view, 100.0) == pytest.approx(quantum)


def test_answers_that_are_short_against_a_switch_are_interrupted_less_often():
    policy = Adaptive()
    turns = []
    for seconds in (60.0, 30.0, 15.0, 0.0):
        leaving = replace(FREEZING, demand=Demand(0.2, seconds))
        turns.append(policy.quantum_seconds(leaving, "b", View([waits()], [leaving], 30.0), 100.0))
    assert turns[0] == turns[1] < turns[2] < turns[3]


def test_where_several_models_wait_less_time_is_left_over_for_switching():
    turns = []
    for waiting_models in (1, 2, 3, 40):
        leaving = replace(BUSY, demand=Demand(0.0, 60.0, waiting_models))
        turns.append(Adaptive().quantum_seconds(leaving, "b", View([waits()], [leaving], 8.0), 100.0))
    assert turns == pytest.approx([8 / 0.55 - 8, 8 / 0.275 - 8, 24.0, 24.0])


@pytest.mark.parametrize(("waiting_models", "answers"), [(1, 0.0), (2, 0.75), (4, 1.125)])
def test_an_answer_that_would_wait_for_a_whole_round_is_rather_not_interrupted(waiting_models, answers):
    leaving = replace(FREEZING, demand=Demand(1.0, 60.0, waiting_models))
    turn = Adaptive().quantum_seconds(leaving, "b", View([waits()], [leaving], 0.5), 100.0)
    assert turn == pytest.approx(max(1.5, 10.0 * answers))


def test_a_model_that_drains_stops_admitting_as_much_earlier():
    policy, leaving = Adaptive(), replace(BUSY, drain_seconds=4.0)
    assert policy.quantum_seconds(leaving, "b", View([waits()], [leaving], 2.0), 100.0) == 2.0
    freezing = replace(leaving, can_freeze=True)
    assert policy.quantum_seconds(freezing, "b", View([waits()], [freezing], 2.0), 100.0) == 6.0


def test_without_incumbents_or_candidates():
    assert Adaptive().choose(View([waits()], []), 100.0) == Bring("b")
    assert Adaptive().choose(View([], [BUSY]), 100.0) == Stay(float("inf"))


def test_a_model_that_has_to_drain_rather_gets_idle_by_itself_where_that_takes_not_long():
    policy = Adaptive()
    for rate, can_freeze, stays in ((0.15, False, True), (0.16, False, False), (0.15, True, False)):
        leaving = replace(BUSY, residence_seconds=10.0, arrivals_per_second=rate, can_freeze=can_freeze)
        turn = policy.quantum_seconds(leaving, "b", View([waits()], [leaving], 2.0), 110.0)
        assert turn == (10.25 if stays else 6.0)


@pytest.mark.parametrize("behind", [{"awaiting_first_token": 3}, {"queue_depth": 3}])
def test_a_model_stays_until_everybody_has_a_first_token(behind):
    leaving = replace(BUSY, **behind)
    policy, view = Adaptive(), View([waits()], [leaving], 2.0)
    assert policy.quantum_seconds(leaving, "b", view, 110.0) == 10.25
    assert policy.choose(view, 110.0) == Stay(110.25)
    assert policy.quantum_seconds(BUSY, "b", view, 110.0) == 6.0


def test_it_checks_again_when_the_quantum_is_over_to_the_last_bit():
    """At 0.1 + 0.2 seconds, what has passed since 0.1 is a little less than 0.2."""
    leaving = replace(BEHIND, since=0.1)
    policy = Adaptive(switch_share_max=0.5)
    assert policy.quantum_seconds(leaving, "b", View([waits()], [leaving], 0.2), 0.1 + 0.2) > 0.2


def test_a_model_stays_while_that_saves_recompute():
    """Answers of 10 s end at a tenth of those in flight a second, and each would take 0.1 s to be read again."""
    policy = Adaptive()
    for in_flight, stays in ((34, False), (36, True)):
        leaving = replace(FREEZING, in_flight=in_flight)
        turn = policy.quantum_seconds(leaving, "b", View([waits()], [leaving], 2.0), 110.0)
        assert turn == (10.25 if stays else 6.0)
    draining = replace(FREEZING, in_flight=36, can_freeze=False, arrivals_per_second=3.6)
    assert policy.quantum_seconds(draining, "b", View([waits()], [draining], 2.0), 110.0) == 6.0


LONGEST_TURNS = (
    (replace(BEHIND, can_freeze=True), 30.0),
    (replace(BEHIND, can_freeze=True, residence_seconds=2.0), 24.0),
    (replace(BEHIND, can_freeze=True, residence_seconds=None), 24.0),
    (replace(BEHIND, can_freeze=True, residence_seconds=90.0), CATCHING_UP_MAX_SECONDS),
    (replace(BEHIND, can_freeze=True, residence_seconds=20.0), 60.0),
    (BEHIND, 60.0),
)


@pytest.mark.parametrize(("leaving", "longest"), LONGEST_TURNS)
def test_catching_up_is_bounded(leaving, longest):
    policy, view = Adaptive(), View([waits()], [leaving], 2.0)
    assert policy.quantum_seconds(leaving, "b", view, 100.0 + longest - 0.01) == longest
    assert policy.quantum_seconds(leaving, "b", view, 100.0 + longest) == 6.0


@pytest.mark.parametrize("switch", [0.1, 2.0, 30.0, 100.0])
@pytest.mark.parametrize("can_freeze", [False, True])
def test_no_quantum_is_longer_than_its_maximum(switch, can_freeze):
    leaving = replace(BEHIND, can_freeze=can_freeze, residence_seconds=100.0, demand=Demand(0.9, 100.0, 8))
    policy, view = Adaptive(), View([waits()], [leaving], switch)
    longest = policy.quantum_max_seconds(switch)
    assert all(policy.quantum_seconds(leaving, "b", view, 100.0 + elapsed) <= longest for elapsed in range(400))


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


def test_an_overdue_candidate_does_not_cut_a_quantum_short():
    """20 s of switching make a turn of 60 s where nothing is known to be left over; max_wait_seconds is 15 s."""
    driver = three(Adaptive())
    driver.scheduler._world.costs.observe_evict("a", 10.0)
    driver.scheduler._world.costs.observe_wake("b", 10.0)
    driver.arrive("a")
    driver.finish_wake("a")
    driver.arrive("b")
    driver.answer(next(iter(driver.requests.values())))
    assert switch_begins(driver) == (60.0, "b")


def test_the_wait_bound_counts_the_longest_quantum():
    driver = three(Adaptive())
    limits = driver.limits
    turn = Adaptive().quantum_max_seconds(2.0) + limits.drain_timeout_seconds + 2.0
    assert driver.scheduler.wait_bound(2.0) == limits.max_wait_seconds + 2.0 + 2 * turn


def test_long_answers_do_not_hold_up_another_model_where_they_can_be_frozen():
    specs = [ModelSpec(name, OFFLOAD, drain=Drain.FREEZE) for name in "ab"]
    fates = Fates()
    fates.request = lambda request: (300.0 if request.model == "a" else 1.0, True)  # type: ignore[method-assign]
    driver = CoreDriver(specs, Adaptive(), Limits(), fates=fates, check_bound=True)
    long = driver.arrive("a")
    driver.run_until(40.0)
    short = driver.arrive("b")
    driver.run_until(44.0)
    assert short.place is Place.ENDED and short.error is None
    driver.run_until(900.0)
    assert long.place is Place.ENDED and long.error is None


def test_a_command_does_not_wait_for_the_quantum():
    driver = three(Adaptive())
    driver.arrive("a")
    driver.finish_wake("a")
    driver.run_until(6.0)
    driver.command(SwitchRequested, "b")
    assert driver.scheduler.switching() == ("a", "b")


def test_while_a_cost_is_unknown_the_quantum_is_zero():
    policy, view = Adaptive(), View([waits()], [BUSY], None)
    assert policy.choose(view, 100.0) == Bring("b")
    assert policy.quantum_seconds(BUSY, "b", view, 100.0) == 0.0
