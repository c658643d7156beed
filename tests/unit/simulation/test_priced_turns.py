"""The bound against the best sequence of turns, found by trying all of them."""

import itertools
import random

import pytest

from llmux.simulation.priced_turns import Visitor, least_waiting_of_all


def best(visitors: list[Visitor]) -> float:
    """The least waiting of a few requests: every order in which they can be served, each as early as it can be.

    A request waits until its model is there. Half of a visit's switch is before it, half after it.
    """
    requests = [(model, at) for model, visitor in enumerate(visitors) for at in visitor.ready_at]
    least = float("inf")
    for order in itertools.permutations(requests):
        now, there, waiting = 0.0, None, 0.0
        for model, at in order:
            if model != there:
                now += 0.0 if there is None else visitors[there].switch_seconds / 2
                # It may have come before the request was ready.
                now, there = max(now + visitors[model].switch_seconds / 2, at), model
            now = max(now, at)
            waiting += now - at
        least = min(least, waiting)
    return least


@pytest.mark.parametrize("seed", range(12))
def test_it_is_below_the_best_sequence_of_turns(seed: int) -> None:
    chance = random.Random(seed)
    models = chance.randint(2, 4)
    ready_at: list[list[float]] = [[] for _ in range(models)]
    for _ in range(6):
        chance.choice(ready_at).append(chance.uniform(2.0, 20.0))
    visitors = [Visitor(sorted(some), chance.uniform(0.5, 4.0)) for some in ready_at]
    assert 0.0 <= least_waiting_of_all(visitors) <= best(visitors) + 1e-6


def test_where_everybody_comes_at_once_all_but_one_wait() -> None:
    """Twenty models, each with a request every 40 s, and 4 s a visit: there is time for every second request's."""
    visitors = [Visitor([40.0 * turn + 0.01 * model for turn in range(50)], 4.0) for model in range(20)]
    # 80 s of visits in 40 s: half of the requests wait for the next one's visit, 40 s.
    assert least_waiting_of_all(visitors) == pytest.approx(20 * 50 / 2 * 40, rel=0.03)


def test_a_model_alone_does_not_wait() -> None:
    assert least_waiting_of_all([Visitor([1.0, 50.0], 9.0), Visitor([], 9.0)]) == 0.0


def test_where_there_is_time_for_a_visit_to_each_request_nobody_has_to_wait() -> None:
    assert least_waiting_of_all([Visitor([0.0, 40.0, 80.0], 1.0), Visitor([20.0, 60.0, 100.0], 1.0)]) == 0.0


def test_where_there_is_time_to_stay_for_all_nobody_waits() -> None:
    assert least_waiting_of_all([Visitor([5.0], 0.0), Visitor([5.0], 0.0)]) == 0.0
    assert least_waiting_of_all([Visitor([0.0, 1.0], 1.0), Visitor([1.0], 1.0)], done_before=9.0) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_a_tolerance_costs_no_more_than_it_says(seed: int) -> None:
    chance = random.Random(seed)
    visitors = [
        Visitor(sorted(chance.uniform(0.0, 600.0) for _ in range(chance.randint(20, 300))), 3.0) for _ in range(3)
    ]
    best = least_waiting_of_all(visitors)
    for tolerance in (0.01 * best, 0.1 * best):
        assert best - tolerance <= least_waiting_of_all(visitors, tolerance_seconds=tolerance) <= best
