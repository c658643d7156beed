"""What switches have cost; the numbers are those of 0.7.7."""

import pytest

from llmux.core.eviction import STOP
from llmux.core.settings import ModelSpec
from llmux.core.switch_costs import SwitchCosts
from tests.support.core_scenarios import OFFLOAD
from tests.support.playbook import play, serving


def test_an_unknown_direction_costs_ten_seconds():
    costs = SwitchCosts()
    costs.observe_wake("b", 1.0)
    assert costs.direction("a", "b") == 10.0


def test_the_first_sample_counts_as_it_is_later_ones_by_three_tenths():
    costs = SwitchCosts()
    costs.observe_evict("a", 2.0)
    costs.observe_wake("b", 4.0)
    assert costs.direction("a", "b") == 6.0
    costs.observe_wake("b", 14.0)
    assert costs.direction("a", "b") == pytest.approx(2.0 + 0.3 * 14.0 + 0.7 * 4.0)


def test_samples_are_capped_at_a_minute():
    costs = SwitchCosts()
    costs.observe_evict("a", 0.0)
    costs.observe_wake("b", 500.0)
    assert costs.direction("a", "b") == 60.0


def test_an_unknown_cost_differs_from_the_assumed_one():
    costs = SwitchCosts()
    costs.observe_wake("b", 1.0)
    assert costs.known("a", "b") is None
    costs.observe_evict("a", 0.5)
    assert costs.known("a", "b") == costs.direction("a", "b") == 1.5


def test_the_first_start_of_a_model_that_will_sleep_says_nothing_about_its_wakes():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", STOP))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.run_until(7.0)
    driver.finish_evict("a")
    driver.run_until(40.0)
    driver.finish_wake("b")
    costs = driver.scheduler._world.costs
    assert costs.known("a", "b") == 34.0, "what stops is always started anew"
    assert costs.known("a", "a") is None
