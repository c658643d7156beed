"""What switches have cost; the numbers are those of 0.7.7."""

import pytest

from llmux.core.switch_costs import SwitchCosts


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
