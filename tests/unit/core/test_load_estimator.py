"""Estimates of how much of an engine's time a model's requests need."""

import pytest

from llmux.core.load_estimator import BUSY_MEMORY_SECONDS, LoadEstimator


def test_the_rate_follows_arrivals():
    estimator = LoadEstimator()
    estimator.sample(0.0)
    for second in range(1, 301):
        estimator.arrivals += 2
        estimator.sample(float(second))
    assert estimator.arrivals_per_second == pytest.approx(2.0, rel=0.02)
    estimator.sample(600.0)
    assert estimator.arrivals_per_second < 0.1


def test_a_second_sample_within_the_interval_changes_nothing():
    estimator = LoadEstimator()
    estimator.sample(0.0)
    estimator.arrivals = 5
    estimator.sample(0.5)
    assert estimator.arrivals_per_second == 0.0
    estimator.sample(10.0)
    assert estimator.arrivals_per_second > 0.0


class Engine:
    """An engine whose work is described in stretches of time."""

    def __init__(self) -> None:
        self.estimates = LoadEstimator()
        self.now = 0.0
        self.estimates.sample(0.0)
        self.estimates.resume(0.0)

    def serve(self, seconds: float, in_flight: int, ends: int, prefill_seconds: float = 0.0) -> None:
        """A stretch in which ``ends`` requests end, and whose first ``prefill_seconds`` one waits for a first token."""
        estimator = self.estimates
        estimator.accrue(in_flight, True, self.now + prefill_seconds)
        estimator.accrue(in_flight, False, self.now + seconds)
        for _ in range(ends):
            estimator.first_token()
            estimator.ended()
        self.now += seconds
        estimator.sample(self.now)


def test_residence_time_is_request_seconds_divided_by_ends():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20)
    assert engine.estimates.residence_seconds == pytest.approx(2.0)


def test_prefill_time_is_waiting_time_divided_by_first_tokens():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20, prefill_seconds=4.0)
    assert engine.estimates.prefill_seconds == pytest.approx(0.2)


def test_load_is_the_share_of_engine_time_that_arrivals_need():
    engine = Engine()
    for _ in range(60):
        engine.estimates.arrivals += 20
        engine.serve(10.0, in_flight=4, ends=20, prefill_seconds=4.0)
    assert engine.estimates.load == pytest.approx(0.4, rel=0.01)


def test_time_away_from_the_gpu_does_not_count():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20)
    engine.now += 600.0
    engine.estimates.resume(engine.now)
    engine.serve(10.0, in_flight=4, ends=20)
    assert engine.estimates.residence_seconds == pytest.approx(2.0)


def test_what_was_long_ago_in_busy_time_is_forgotten():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20)
    for _ in range(10):
        engine.serve(BUSY_MEMORY_SECONDS, in_flight=4, ends=int(4 * BUSY_MEMORY_SECONDS))
    assert engine.estimates.residence_seconds == pytest.approx(1.0, rel=0.01)


def test_what_is_new_in_one_long_sample_counts_in_full():
    engine = Engine()
    engine.serve(10 * BUSY_MEMORY_SECONDS, in_flight=1, ends=3)
    assert engine.estimates.residence_seconds == pytest.approx(10 * BUSY_MEMORY_SECONDS / 3)


def test_without_streaming_the_load_is_bounded_by_residence_time():
    estimator = LoadEstimator()
    estimator.sample(0.0)
    estimator.resume(0.0)
    for second in range(1, 301):
        estimator.arrivals += 2
        estimator.accrue(1, False, second - 0.5)
        for _ in range(2):
            estimator.ended()
        estimator.accrue(0, False, float(second))
        estimator.sample(float(second))
    assert estimator.prefill_seconds is None
    assert estimator.load == pytest.approx(0.5, rel=0.05)
    estimator.arrivals_per_second = 20.0
    assert estimator.load == 1.0


def test_one_request_is_too_few_for_a_mean():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=1, prefill_seconds=10.0)
    assert engine.estimates.residence_seconds is None
    assert engine.estimates.prefill_seconds is None
    assert engine.estimates.load == 1.0


def test_drains_are_averaged():
    estimator = LoadEstimator()
    for _ in range(30):
        estimator.drained(8.0)
    assert estimator.drain_seconds == pytest.approx(8.0, rel=0.01)
