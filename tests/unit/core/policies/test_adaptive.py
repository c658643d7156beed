"""Turns of the policy adaptive: a quantum that pays for the switch, more where the model has fallen behind."""

from dataclasses import replace

import pytest

from llmux.core.events import SwitchRequested
from llmux.core.eviction import Drain
from llmux.core.policies.adaptive import CATCHING_UP_MAX_SECONDS, Adaptive
from llmux.core.policies.base import Bring, Candidate, Incumbent, Stay
from llmux.core.settings import Limits, ModelSpec
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD
from tests.support.core_truth import Fates, Place
from tests.unit.core.policies.test_policies import View, switch_begins, three

BUSY = Incumbent("a", 100.0, 4, 0, None)
IDLE = Incumbent("a", 100.0, 0, 0, 101.0)
BEHIND = replace(BUSY, in_flight=60, arrivals_per_second=1.0, service_seconds=10.0, absent_seconds=10.0)


def waits(model: str = "b", since: float = 100.0, depth: int = 1, weight: float = 1.0) -> Candidate:
    return Candidate(model, since, depth, weight)


@pytest.mark.parametrize(("share", "cost", "quantum"), [(0.25, 2.0, 6.0), (0.25, 8.0, 24.0), (0.5, 2.0, 2.0)])
def test_a_busy_model_stays_for_a_quantum_in_proportion_to_the_cost(share, cost, quantum):
    policy, view = Adaptive(share), View([waits()], [BUSY], cost)
    assert policy.choose(view, 100.0) == Stay(100.0 + quantum)
    assert policy.choose(view, 100.0 + quantum) == Bring("b")


def test_an_idle_model_leaves_at_once():
    assert Adaptive().choose(View([waits()], [IDLE], 2.0), 101.0) == Bring("b")


def test_an_idle_model_that_is_asked_for_all_the_time_uses_its_turn_up():
    often = replace(IDLE, arrivals_per_second=2.0)
    assert Adaptive().choose(View([waits()], [often], 2.0), 101.0) == Stay(106.0)


def test_with_nothing_in_the_way_or_nobody_waiting():
    assert Adaptive().choose(View([waits()], []), 100.0) == Bring("b")
    assert Adaptive().choose(View([], [BUSY]), 100.0) == Stay(float("inf"))


def test_a_model_that_has_fallen_behind_catches_up_first():
    policy, view = Adaptive(), View([waits()], [BEHIND], 2.0)
    assert policy.turn_seconds(BEHIND, "b", view, 110.0) > 10.0
    caught_up = replace(BEHIND, in_flight=12)
    assert policy.turn_seconds(caught_up, "b", view, 110.0) == 6.0


def test_catching_up_has_an_end():
    policy, view = Adaptive(), View([waits()], [BEHIND], 2.0)
    assert policy.turn_seconds(BEHIND, "b", view, 100.0 + CATCHING_UP_MAX_SECONDS) == 6.0


def test_the_longer_the_cycle_the_less_may_be_left_over():
    policy, view = Adaptive(), View([waits()], [BEHIND], 2.0)
    left_over = replace(BEHIND, in_flight=18)
    assert policy.turn_seconds(left_over, "b", view, 106.0) == 6.0
    assert policy.turn_seconds(replace(left_over, absent_seconds=60.0), "b", view, 106.0) > 6.0


@pytest.mark.parametrize("switch", [0.1, 2.0, 30.0, 100.0])
def test_no_turn_is_longer_than_the_bound_says(switch):
    policy, view = Adaptive(), View([waits()], [BEHIND], switch)
    longest = policy.longest_turn_seconds(switch)
    assert all(policy.turn_seconds(BEHIND, "b", view, 100.0 + elapsed) <= longest for elapsed in range(400))


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


def test_an_overdue_model_does_not_cut_a_turn_short():
    """20 s of switching make a turn of 60 s; max_wait_seconds is 15 s."""
    driver = three(Adaptive())
    driver.scheduler._world.costs.observe_evict("a", 10.0)
    driver.scheduler._world.costs.observe_wake("b", 10.0)
    driver.arrive("a")
    driver.finish_wake("a")
    driver.arrive("b")
    assert switch_begins(driver) == (60.0, "b")


def test_the_bound_counts_the_longest_turn():
    driver = three(Adaptive())
    limits = driver.limits
    turn = Adaptive().longest_turn_seconds(2.0) + limits.drain_timeout_seconds + 2.0
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


def test_a_command_does_not_ask_for_the_turn():
    driver = three(Adaptive())
    driver.arrive("a")
    driver.finish_wake("a")
    driver.run_until(6.0)
    driver.command(SwitchRequested, "b")
    assert driver.scheduler.switching() == ("a", "b")


def test_as_long_as_nobody_knows_what_a_switch_costs_nobody_stays_for_it():
    policy, view = Adaptive(), View([waits()], [BUSY], None)
    assert policy.choose(view, 100.0) == Bring("b")
    assert policy.turn_seconds(BUSY, "b", view, 100.0) == 0.0
