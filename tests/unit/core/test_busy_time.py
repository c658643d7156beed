"""Expected busy times, against queues that are played with random numbers."""

import math
import random
from statistics import mean, median

import pytest

from llmux.core.busy_time import in_flight_after, seconds_until_ended, seconds_until_idle

RUNS = 1500


def play_until_idle(chance: random.Random, number: int, arrivals_per_second: float, residence_seconds: float) -> float:
    """When nothing is in flight for the first time; requests end and come at random."""
    now = 0.0
    while number:
        rate = arrivals_per_second + number / residence_seconds
        now += chance.expovariate(rate)
        number += 1 if chance.random() < arrivals_per_second / rate else -1
    return now


@pytest.mark.parametrize(("number", "arrivals_per_second"), [(1, 0.0), (20, 0.0), (1, 0.1), (5, 0.3), (64, 0.2)])
def test_an_engine_becomes_idle_when_half_of_the_played_ones_have(number: int, arrivals_per_second: float):
    chance = random.Random(f"{number} {arrivals_per_second}")
    played = median(play_until_idle(chance, number, arrivals_per_second, 5.0) for _ in range(RUNS))
    assert seconds_until_idle(number, arrivals_per_second, 5.0, 5.0) == pytest.approx(played, rel=0.2)


def test_requests_that_all_take_the_same_are_half_over():
    assert seconds_until_idle(8, 0.0, 6.0, 3.0) == seconds_until_ended(8, 3.0) == seconds_until_ended(8, 6.0) / 2
    assert seconds_until_idle(8, 0.1, 6.0, 3.0) < seconds_until_idle(8, 0.1, 6.0, 6.0)


def test_one_that_is_busy_for_forty_answers_is_never_idle():
    assert seconds_until_idle(10, 4.0, 5.0, 5.0) == math.inf


def test_nothing_in_flight_is_idle():
    assert seconds_until_ended(0, 5.0) == seconds_until_idle(0, 1.0, 5.0, 5.0) == 0.0


def test_what_is_in_flight_goes_to_arrivals_times_residence():
    assert in_flight_after(0.0, 9, 0.4, 5.0) == 9
    assert in_flight_after(200.0, 9, 0.4, 5.0) == pytest.approx(2.0)
    chance = random.Random(1)
    left = mean(sum(chance.expovariate(1 / 5.0) > 3.0 for _ in range(9)) for _ in range(RUNS))
    assert in_flight_after(3.0, 9, 0.0, 5.0) == pytest.approx(left, rel=0.05)
