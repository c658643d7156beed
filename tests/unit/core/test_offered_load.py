"""How much is asked of the GPUs, against workloads whose load is known."""

import random

import pytest

from llmux.core.actions import Evict, Wake
from llmux.core.events import EvictDone
from llmux.core.identifiers import GpuId
from llmux.core.offered_load import LEAST_KNOWN_SECONDS
from llmux.core.policies.adaptive import Adaptive
from llmux.core.settings import Limits, ModelSpec, Placement, RefuseAfter
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD
from tests.support.core_truth import Fates, TrackedRequest, evicted
from tests.support.playbook import play, serving

LOADS = (0.5, 0.9, 1.4, 2.0)
ANSWER_SECONDS = 4.0
PATIENT = Limits(request_timeout_seconds=1e6)


class Slow(Fates):
    """Answers of random length, 4 s on average."""

    def __init__(self) -> None:
        self.chance = random.Random("answers")

    def request(self, request: TrackedRequest) -> tuple[float, bool]:
        return self.chance.uniform(0.5, 1.5) * ANSWER_SECONDS, True


class SlowSwitches(Slow):
    """Models leave in 4 s, and come in 10: where two take turns, that is a quarter of the time and more."""

    longest_switch_seconds = 14.0

    def evict(self, action: Evict) -> tuple[float, EvictDone]:
        return 4.0, evicted(action)

    def wake(self, action: Wake) -> tuple[float, None]:
        return 10.0, None


def load_of(driver: CoreDriver, requests_per_second: float, *, seconds: float = 1500.0) -> float:
    """The mean of what is measured over the second half, with requests for all models alike."""
    chance = random.Random(f"arrivals {requests_per_second}")
    at, names = 0.0, [spec.name for spec in driver.specs]
    while (at := at + chance.uniform(0.5, 1.5) / requests_per_second) < seconds:
        name = chance.choice(names)
        driver.at(at, lambda name=name: driver.arrive(name) and None)  # type: ignore[misc]
    seen = []
    for second in range(1, int(seconds)):
        driver.run_until(float(second))
        found = driver.scheduler.offered_load(driver.now)
        if second > seconds / 2:
            assert found is not None
            seen.append(found)
    return sum(seen) / len(seen)


@pytest.mark.parametrize("load", LOADS)
def test_one_model_that_answers_one_at_a_time(load: float):
    driver = CoreDriver([ModelSpec("a", max_in_flight=1)], Adaptive(), PATIENT, fates=Slow(), check_every=1000)
    assert load_of(driver, load / ANSWER_SECONDS) == pytest.approx(load, rel=0.1)


@pytest.mark.parametrize("load", [1.4, 2.0])
def test_full_batches_count_as_what_they_do(load: float):
    driver = CoreDriver([ModelSpec("a", max_in_flight=8)], Adaptive(), PATIENT, fates=Slow(), check_every=1000)
    assert load_of(driver, 8 * load / ANSWER_SECONDS) == pytest.approx(load, rel=0.1)


@pytest.mark.parametrize("load", [1.4, 2.0])
def test_models_that_take_turns(load: float):
    """What they can do together is what they did: switches have taken their part of it."""
    specs = [ModelSpec(name, OFFLOAD, max_in_flight=1) for name in "ab"]
    driver = CoreDriver(specs, Adaptive(), PATIENT, fates=SlowSwitches(), check_every=1000)
    rate = load / (1.3 * ANSWER_SECONDS)
    measured = load_of(driver, rate)
    ended = sum(driver.scheduler.model(name).estimates.ends for name in "ab")
    assert ended < 0.9 * rate * driver.now
    assert measured == pytest.approx(rate * driver.now / ended, rel=0.1)


@pytest.mark.parametrize("load", LOADS)
def test_two_models_beside_each_other_have_half_of_the_gpu_each(load: float):
    gpu = GpuId("local", "0")
    specs = [ModelSpec(name, max_in_flight=1, placements=(Placement({gpu: 10}),)) for name in "ab"]
    driver = CoreDriver(specs, Adaptive(), PATIENT, {gpu: 24}, fates=Slow(), check_every=1000)
    assert load_of(driver, 2 * load / ANSWER_SECONDS) == pytest.approx(load, rel=0.1)


def test_what_is_refused_was_asked_all_the_same():
    spec = ModelSpec("a", max_in_flight=1, refuse_after=RefuseAfter(20.0))
    driver = CoreDriver([spec], Adaptive(), PATIENT, fates=Slow(), check_every=1000)
    assert load_of(driver, 2.0 / ANSWER_SECONDS) == pytest.approx(2.0, rel=0.1)
    assert driver.scheduler.model("a").estimates.turned_away > 100


def test_so_was_what_a_full_queue_has_no_room_for():
    limits = Limits(request_timeout_seconds=1e6, queue_limit_requests=5)
    driver = CoreDriver([ModelSpec("a", max_in_flight=1)], Adaptive(), limits, fates=Slow(), check_every=1000)
    assert load_of(driver, 2.0 / ANSWER_SECONDS) == pytest.approx(2.0, rel=0.1)


def test_nothing_is_told_before_enough_was_seen():
    driver = play(ModelSpec("a"), policy=Adaptive())
    assert driver.scheduler.offered_load(driver.now) is None
    driver.run_until(LEAST_KNOWN_SECONDS - 10.0)
    assert driver.scheduler.offered_load(driver.now) is None
    driver.run_until(2 * LEAST_KNOWN_SECONDS)
    assert driver.scheduler.offered_load(driver.now) == 0.0


def test_a_long_time_that_nobody_asked_for_is_forgotten_as_fast():
    """Else a quiet night would hide what is asked in the morning."""
    driver = play(ModelSpec("a", max_in_flight=1), policy=Adaptive())
    driver.scheduler.offered_load(driver.now)
    serving(driver, "a")
    driver.run_until(36_000.0)
    assert driver.scheduler.offered_load(driver.now) == pytest.approx(0.0, abs=0.01)
    for _ in range(60):
        request = driver.arrive("a")
        driver.run_until(driver.now + 10.0)
        driver.complete(request)
        found = driver.scheduler.offered_load(driver.now)
    assert found == pytest.approx(1.0, rel=0.1)


def decisions(*, measured: bool) -> list[str]:
    """What is done while two models take turns, and perhaps measured every second."""
    driver = CoreDriver([ModelSpec(name, OFFLOAD, max_in_flight=2) for name in "ab"], Adaptive(), PATIENT, fates=Slow())
    chance, at = random.Random("same"), 0.0
    while (at := at + chance.expovariate(0.6)) < 300.0:
        name = chance.choice("ab")
        driver.at(at, lambda name=name: driver.arrive(name) and None)  # type: ignore[misc]
    for second in range(400):
        driver.run_until(float(second))
        if measured:
            driver.scheduler.offered_load(driver.now)
    return [str(action) for action in driver.log]


def test_measuring_changes_no_decision():
    found = decisions(measured=True)
    assert len(found) > 100
    assert found == decisions(measured=False)
