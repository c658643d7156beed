"""What is learnt of a model's requests."""

import pytest

from llmux.core.load import SERVICE_MEMORY_SECONDS, LoadEstimator


def test_the_rate_follows_the_arrivals():
    traffic = LoadEstimator()
    traffic.look(0.0)
    for second in range(1, 301):
        traffic.arrived += 2
        traffic.look(float(second))
    assert traffic.rate == pytest.approx(2.0, rel=0.02)
    traffic.look(600.0)
    assert traffic.rate < 0.1


def test_a_second_look_at_once_changes_nothing():
    traffic = LoadEstimator()
    traffic.look(0.0)
    traffic.arrived = 5
    traffic.look(0.5)
    assert traffic.rate == 0.0
    traffic.look(10.0)
    assert traffic.rate > 0.0


class Engine:
    """One that serves so many at a time, of which each takes so long, and as much of that to be read."""

    def __init__(self) -> None:
        self.traffic = LoadEstimator()
        self.now = 0.0
        self.traffic.look(0.0)
        self.traffic.resume(0.0)

    def serve(self, seconds: float, in_flight: int, ends: int, behind_seconds: float = 0.0) -> None:
        """A stretch of time in which so many end, and for a part of which somebody waits for a first token."""
        traffic = self.traffic
        traffic.pass_time(in_flight, True, self.now + behind_seconds)
        traffic.pass_time(in_flight, False, self.now + seconds)
        for _ in range(ends):
            traffic.answered()
            traffic.ended()
        self.now += seconds
        traffic.look(self.now)


def test_the_service_time_is_what_was_in_flight_by_what_ended():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20)
    assert engine.traffic.residence_seconds == pytest.approx(2.0)


def test_the_reading_time_is_how_fast_first_tokens_come_while_anybody_waits_for_one():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20, behind_seconds=4.0)
    assert engine.traffic.prefill_seconds == pytest.approx(0.2)


def test_the_load_is_what_the_arrivals_take_of_the_engines_time():
    engine = Engine()
    for _ in range(60):
        engine.traffic.arrived += 20
        engine.serve(10.0, in_flight=4, ends=20, behind_seconds=4.0)
    assert engine.traffic.load == pytest.approx(0.4, rel=0.01)


def test_time_away_from_the_gpu_does_not_count():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20)
    engine.now += 600.0
    engine.traffic.resume(engine.now)
    engine.serve(10.0, in_flight=4, ends=20)
    assert engine.traffic.residence_seconds == pytest.approx(2.0)


def test_what_is_long_ago_on_the_gpu_is_forgotten():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20)
    for _ in range(10):
        engine.serve(SERVICE_MEMORY_SECONDS, in_flight=4, ends=int(4 * SERVICE_MEMORY_SECONDS))
    assert engine.traffic.residence_seconds == pytest.approx(1.0, rel=0.01)


def test_what_was_seen_in_one_long_look_counts_in_full():
    engine = Engine()
    engine.serve(10 * SERVICE_MEMORY_SECONDS, in_flight=1, ends=3)
    assert engine.traffic.residence_seconds == pytest.approx(10 * SERVICE_MEMORY_SECONDS / 3)


def test_where_nobody_streams_the_load_is_that_of_the_whole_answers():
    traffic = LoadEstimator()
    traffic.look(0.0)
    traffic.resume(0.0)
    for second in range(1, 301):
        traffic.arrived += 2
        traffic.pass_time(1, False, second - 0.5)
        for _ in range(2):
            traffic.ended()
        traffic.pass_time(0, False, float(second))
        traffic.look(float(second))
    assert traffic.prefill_seconds is None
    assert traffic.load == pytest.approx(0.5, rel=0.05)
    traffic.rate = 20.0
    assert traffic.load == 1.0


def test_one_request_says_nothing():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=1, behind_seconds=10.0)
    assert engine.traffic.residence_seconds is None
    assert engine.traffic.prefill_seconds is None
    assert engine.traffic.load == 1.0


def test_drains_are_averaged():
    traffic = LoadEstimator()
    for _ in range(30):
        traffic.drained(8.0)
    assert traffic.drain_seconds == pytest.approx(8.0, rel=0.01)
