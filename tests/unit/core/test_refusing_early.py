"""``refuse_after_seconds``: requests that would wait for too long are refused when they come."""

import math
import random
from collections import Counter
from types import NoneType

import pytest

from llmux.core.policies.adaptive import Adaptive
from llmux.core.request import Priority
from llmux.core.settings import Limits, ModelSpec, RefuseAfter
from llmux.errors import Overloaded, QueueTimeout
from tests.support.core_driver import CoreDriver
from tests.support.core_truth import Fates, Place, TrackedRequest
from tests.support.playbook import LIMITS, play, serving

LIMIT = 30.0
INTERACTIVE_LIMITED = RefuseAfter(LIMIT)


def busy(refuse_after: RefuseAfter = INTERACTIVE_LIMITED) -> CoreDriver:
    """A model that answers one request at a time, in 10 s each, and has one in flight."""
    driver = play(ModelSpec("a", max_in_flight=1, refuse_after=refuse_after), policy=Adaptive())
    serving(driver, "a")
    for _ in range(20):
        request = driver.arrive("a")
        driver.run_until(driver.now + 10.0)
        driver.complete(request)
    driver.arrive("a")
    return driver


def test_what_would_wait_for_too_long_is_refused():
    driver = busy()
    requests = [driver.arrive("a") for _ in range(6)]
    # The means are those of the last answers, of which the first took no time.
    assert [request.place for request in requests] == [Place.WAITING] * 3 + [Place.ENDED] * 3
    error = requests[-1].error
    assert isinstance(error, Overloaded)
    assert 0 < error.retry_after_seconds < 10.0
    assert "x-llmux-priority: batch" in str(error)


def test_batch_requests_wait():
    driver = busy()
    requests = [driver.arrive("a", priority=Priority.BATCH) for _ in range(6)]
    assert {request.place for request in requests} == {Place.WAITING}


def test_batch_requests_have_a_limit_of_their_own():
    driver = busy(RefuseAfter(batch_seconds=LIMIT))
    requests = [driver.arrive("a", priority=Priority.BATCH) for _ in range(6)]
    assert [request.place for request in requests] == [Place.WAITING] * 3 + [Place.ENDED] * 3
    error = requests[-1].error
    assert isinstance(error, Overloaded)
    assert "x-llmux-priority" not in str(error)
    assert driver.arrive("a").place is Place.WAITING


def test_each_model_has_a_limit_of_its_own():
    specs = [ModelSpec("a", refuse_after=RefuseAfter(1.0)), ModelSpec("b", refuse_after=RefuseAfter(600.0))]
    driver = play(ModelSpec("c"), *specs, policy=Adaptive())
    serving(driver, "c")
    last = [[driver.arrive(name) for _ in range(2)][-1] for name in "ab"]
    assert isinstance(last[0].error, Overloaded)
    assert last[1].place is Place.WAITING


def test_an_interactive_request_does_not_wait_for_batch_requests():
    driver = busy()
    for _ in range(6):
        driver.arrive("a", priority=Priority.BATCH)
    assert driver.arrive("a").place is Place.WAITING


def test_by_default_nothing_is_refused_early():
    driver = busy(ModelSpec("a").refuse_after)
    requests = [driver.arrive("a") for _ in range(50)]
    assert {request.place for request in requests} == {Place.WAITING}


def test_the_only_one_that_waits_for_its_model_is_kept_however_long_that_takes():
    driver = play(ModelSpec("a"), ModelSpec("b", refuse_after=RefuseAfter(1.0)), policy=Adaptive())
    serving(driver, "a")
    first, second = driver.arrive("b"), driver.arrive("b")
    assert first.place is Place.WAITING
    assert isinstance(second.error, Overloaded)
    driver.run_until(driver.now + LIMITS.min_active_seconds)
    assert driver.scheduler.switching() == ("a", "b")


def test_refused_requests_are_not_expected_to_be_served():
    driver = busy()
    model = driver.scheduler.model("a")
    for _ in range(3):
        driver.arrive("a")
    served = model.estimates.arrivals
    for _ in range(40):
        assert isinstance(driver.arrive("a").error, Overloaded)
    assert model.estimates.arrivals == served


class Slow(Fates):
    """Answers of random length."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def request(self, request: TrackedRequest) -> tuple[float, bool]:
        return self.rng.expovariate(1 / 8.0), True


def play_overload(seed: int, refuse_after_seconds: float) -> Counter[type]:
    """Three models that are asked for four times what they can answer: how the requests ended, by their errors."""
    limits = Limits(request_timeout_seconds=240.0)
    specs = [ModelSpec(name, max_in_flight=2, refuse_after=RefuseAfter(refuse_after_seconds)) for name in "abc"]
    driver = CoreDriver(specs, Adaptive(), limits, fates=Slow(seed))
    rng = random.Random(seed)
    at = 0.0
    while (at := at + rng.expovariate(1.0)) < 900.0:
        name = rng.choice("abc")
        driver.at(at, lambda name=name: driver.arrive(name) and None)  # type: ignore[misc]
    driver.run_until(1500.0)
    assert all(request.place is Place.ENDED for request in driver.requests.values())
    return Counter(type(request.error) for request in driver.requests.values())


@pytest.mark.parametrize("seed", range(3))
def test_under_overload_who_is_let_in_is_served(seed: int):
    with_limit, without = play_overload(seed, 60.0), play_overload(seed, math.inf)
    assert without[QueueTimeout] > 600
    assert with_limit[QueueTimeout] <= 0.03 * with_limit[NoneType]
    assert with_limit[NoneType] > 0.8 * without[NoneType]
