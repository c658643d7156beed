"""The meaning of the three policies, with the numbers of 0.7.7, through the scheduler that they steer."""

from dataclasses import replace

import pytest

from llmux.core.policies.base import Candidate, Incumbent, Stay, Waiting
from llmux.core.policies.cost_aware import CostAware
from llmux.core.policies.fifo import Fifo
from llmux.core.policies.time_slice import TimeSlice
from llmux.core.settings import ModelSpec
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD
from tests.support.core_truth import Request
from tests.support.playbook import LIMITS, play, serving


def three(policy: object, **limits: float) -> CoreDriver:
    specs = [ModelSpec(name, OFFLOAD) for name in "abc"]
    return play(*specs, policy=policy, limits=replace(LIMITS, **limits))  # type: ignore[arg-type]


def switch_begins(driver: CoreDriver, before: float = 100.0) -> tuple[float, str]:
    """When the next switch begins, and to which model."""
    while driver.scheduler.switching() is None and driver.timer_at is not None and driver.timer_at <= before:
        driver.run_until(driver.timer_at)
    switch = driver.scheduler.switching()
    assert switch is not None, f"no switch until {driver.now}"
    return driver.now, switch[1]


class View:
    """A policy's view, as plain data."""

    def __init__(
        self,
        candidates: list[Candidate],
        incumbents: list[Incumbent],
        cost: float = 10.0,
        waiting: Waiting = Waiting(),  # noqa: B008 - it is immutable
    ) -> None:
        self._candidates, self._incumbents, self._cost, self._waiting = candidates, incumbents, cost, waiting

    def oldest(self):
        return next(iter(self._candidates), None)

    def candidates(self):
        return iter(self._candidates)

    def in_the_way(self, candidate):
        return self._incumbents

    def waiting_for(self, leaving):
        return self._waiting

    def cost(self, leaving, coming):
        return self._cost

    def known_cost(self, leaving, coming):
        return self._cost


def learnt(driver: CoreDriver, seconds: float) -> None:
    for name in "abc":
        driver.scheduler._world.costs.observe_evict(name, seconds / 2)
        driver.scheduler._world.costs.observe_wake(name, seconds / 2)


@pytest.mark.parametrize("policy", [Fifo(), CostAware(), TimeSlice()])
def test_with_nothing_in_the_way_a_switch_begins_at_once(policy):
    driver = three(policy)
    driver.arrive("a")
    assert driver.pending


@pytest.mark.parametrize("policy", [Fifo(), CostAware(), TimeSlice()])
def test_without_candidates_nothing_is_due(policy):
    assert policy.choose(View([], []), 1.0) == Stay(float("inf"))


def test_fifo_switches_at_the_first_request_for_another_model():
    driver = three(Fifo())
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("a")
    driver.arrive("c")
    driver.arrive("b")
    assert driver.scheduler.switching() == ("a", "c")


def test_a_model_stays_min_active_seconds_under_every_policy():
    driver = three(Fifo())
    serving(driver, "a")
    driver.run_until(1.0)
    driver.arrive("b")
    assert switch_begins(driver) == (5.0, "b")


def test_cost_aware_waits_until_the_last_switch_has_paid_off():
    driver = three(CostAware())
    serving(driver, "a")
    driver.run_until(6.0)
    for _ in range(20):
        driver.arrive("b")
    assert switch_begins(driver) == (10.0, "b"), "10 s are counted before any sample"


@pytest.mark.parametrize(("cost", "worthwhile"), [(8.0, 4), (7.0, 4), (6.0, 3), (1.0, 1), (0.1, 1)])
def test_cost_aware_switches_at_once_for_a_queue_that_is_worth_it(cost, worthwhile):
    driver = three(CostAware())
    serving(driver, "a")
    learnt(driver, cost)
    driver.scheduler._world.costs._wake["b"] = cost / 2
    driver.scheduler._world.costs._evict["a"] = cost / 2
    driver.run_until(20.0)
    busy = driver.arrive("a")
    for _ in range(worthwhile - 1):
        driver.arrive("b")
    assert driver.scheduler.switching() is None
    driver.arrive("b")
    assert driver.scheduler.switching() == ("a", "b")
    driver.complete(busy)


def test_cost_aware_switches_for_less_after_the_coalescing_window():
    driver = three(CostAware(coalesce_window_seconds=2.0))
    serving(driver, "a")
    driver.run_until(20.0)
    driver.arrive("b")
    assert switch_begins(driver) == (22.0, "b")


def test_cost_aware_never_exceeds_the_bound():
    driver = three(CostAware(coalesce_window_seconds=50.0))
    serving(driver, "a")
    driver.run_until(20.0)
    driver.arrive("b")
    assert switch_begins(driver) == (35.0, "b")


def test_a_deferred_switch_is_dropped_when_its_only_waiter_leaves():
    driver = three(CostAware())
    serving(driver, "a")
    driver.run_until(20.0)
    driver.leave(driver.arrive("b"))
    driver.run_until(60.0)
    assert not driver.pending


def test_time_slice_switches_when_the_model_has_been_idle_for_a_tick():
    driver = three(TimeSlice(tick_interval_seconds=0.5))
    serving(driver, "a")
    driver.run_until(10.0)
    busy = driver.arrive("a")
    driver.arrive("b")
    driver.run_until(12.0)
    assert driver.scheduler.switching() is None
    driver.complete(busy)
    assert switch_begins(driver) == (12.5, "b")


def test_time_slice_goes_to_the_longest_queue():
    driver = three(TimeSlice())
    serving(driver, "a")
    driver.run_until(10.0)
    busy = driver.arrive("a")
    driver.arrive("b")
    driver.arrive("c")
    driver.arrive("c")
    driver.complete(busy)
    assert switch_begins(driver) == (10.5, "c")


def test_time_slice_switches_for_the_oldest_waiter_when_it_is_overdue_though_the_model_is_busy():
    driver = three(TimeSlice())
    serving(driver, "a")
    driver.run_until(10.0)
    driver.arrive("a")
    waiting: Request = driver.arrive("b")
    assert switch_begins(driver) == (25.0, "b")
    assert waiting.error is None


def test_overdue_models_go_in_the_order_in_which_they_became_overdue():
    driver = three(TimeSlice(), min_active_seconds=0.0)
    serving(driver, "a")
    driver.run_until(10.0)
    driver.arrive("a")
    driver.arrive("c")
    driver.run_until(11.0)
    driver.arrive("b")
    assert switch_begins(driver) == (25.0, "c")
    driver.run_until(45.0)
    driver.finish_evict("a")
    held = driver.arrive("c")
    driver.finish_wake("c")
    driver.complete(held)
    assert driver.scheduler.switching() == ("c", "b")
