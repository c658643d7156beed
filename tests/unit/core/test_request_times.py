"""Estimates of how long a model's requests take."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.core.clock import Clock
from llmux.core.model import Model, NeedNumbers
from llmux.core.request import Request
from llmux.core.request_times import BUSY_MEMORY_SECONDS, RequestTimes
from llmux.core.settings import ModelSpec
from llmux.core.states import Serving


def test_the_rate_follows_arrivals():
    times = RequestTimes()
    times.sample(0.0)
    for second in range(1, 301):
        times.arrivals += 2
        times.sample(float(second))
    assert times.arrivals_per_second == pytest.approx(2.0, rel=0.02)
    times.sample(600.0)
    assert times.arrivals_per_second < 0.1


def test_a_second_sample_within_the_interval_changes_nothing():
    times = RequestTimes()
    times.sample(0.0)
    times.arrivals = 5
    times.sample(0.5)
    assert times.arrivals_per_second == 0.0
    times.sample(10.0)
    assert times.arrivals_per_second > 0.0


class Engine:
    """An engine whose work is described in stretches of time."""

    def __init__(self) -> None:
        self.estimates = RequestTimes()
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
            estimator.ended(seconds)
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


def test_one_request_is_too_few_for_a_mean():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=1, prefill_seconds=10.0)
    assert engine.estimates.residence_seconds is None
    assert engine.estimates.prefill_seconds is None


def test_the_latest_times_are_what_a_sample_would_say():
    engine = Engine()
    engine.serve(10.0, in_flight=4, ends=20, prefill_seconds=4.0)
    times = engine.estimates
    times.accrue(3, True, engine.now + 30.0)
    for _ in range(6):
        times.first_token()
        times.ended(5.0)
    before = times.residence_seconds
    latest = times.latest()
    assert times.residence_seconds == before
    times.sample(engine.now + 30.0)
    assert (latest.residence_seconds, latest.prefill_seconds) == (times.residence_seconds, times.prefill_seconds)
    assert latest.residence_seconds != before


@pytest.mark.parametrize(("durations", "remaining"), [((4.0,) * 4, 2.0), ((2.0, 2.0, 2.0, 10.0), 3.5)])
def test_at_a_random_moment_a_long_request_is_more_likely_to_be_met(durations: tuple[float, ...], remaining: float):
    times = RequestTimes()
    times.sample(0.0)
    times.accrue(0, False, 0.0)
    for end in durations:
        times.accrue(1, False, times._accrued_at + end)
        times.ended(end)
    assert times.latest().residence_seconds == pytest.approx(4.0)
    assert times.latest().remaining_seconds == pytest.approx(remaining)


def test_pauses_are_averaged():
    times = RequestTimes()
    assert times.pause_seconds is None
    times.paused(20.0)
    assert times.pause_seconds == 20.0
    for _ in range(30):
        times.paused(8.0)
    assert times.pause_seconds == pytest.approx(8.0, rel=0.01)


@given(st.integers(min_value=0))
def test_a_model_adds_up_the_time_of_its_requests(seed: int) -> None:
    chance = random.Random(seed)
    model = Model(ModelSpec("a"), 60.0, Clock(), NeedNumbers())
    model.state = Serving(0.0)
    model.estimates.sample(0.0)
    model.estimates.resume(0.0)
    requests = [Request(number, "a", streams=chance.random() < 0.3) for number in range(50)]
    coming, present, awaiting = iter(requests), [], set()
    request_seconds = prefill_seconds = 0.0
    ended = first_tokens = 0
    for request in coming:
        for _ in range(chance.randrange(5)):
            elapsed = chance.choice((0.0, 0.01, 1.5))
            model.clock.now += elapsed
            request_seconds += len(present) * elapsed
            prefill_seconds += elapsed if awaiting else 0.0
            if awaiting and chance.random() < 0.5:
                model.first_token(awaiting.pop())
                first_tokens += 1
            elif present:
                leaving = present.pop(chance.randrange(len(present)))
                awaiting.discard(leaving)
                model.end(leaving)
                ended += 1
        model.begin(request)
        present.append(request)
        awaiting |= {request} if request.streams else set()
    model.clock.now += 1.0
    model.sample()
    request_seconds += len(present)
    prefill_seconds += 1.0 if awaiting else 0.0
    assert model.estimates.residence_seconds == (pytest.approx(request_seconds / ended) if ended >= 2 else None)
    assert model.estimates.prefill_seconds == (
        pytest.approx(prefill_seconds / first_tokens) if first_tokens >= 2 else None
    )
