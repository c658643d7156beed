"""What a policy is told of the requests: who waits for a first token, and what the models ask of a GPU together."""

import pytest

from llmux.core.policies.base import Incumbent
from llmux.core.settings import ModelSpec
from llmux.core.states import Draining, Serving
from llmux.core.switching import View
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import GPUS, OFFLOAD
from tests.support.playbook import play, serving


def told_of(driver: CoreDriver, name: str) -> Incumbent:
    return View(driver.scheduler._world, driver.now, set()).incumbent(driver.scheduler.model(name))


def learnt(driver: CoreDriver, name: str, *, rate: float, prefill_seconds: float, residence_seconds: float) -> None:
    """As if so much had been learnt of a model's requests."""
    traffic = driver.scheduler.model(name).traffic
    traffic.look(driver.now)
    traffic.rate = rate
    for mean, seconds in ((traffic._reading, prefill_seconds), (traffic._service, residence_seconds)):
        mean.new_count, mean.new_seconds = 100, 100 * seconds
        mean.fade(0.0)


def serve(driver: CoreDriver, name: str, *, writing_seconds: float) -> None:
    """A request that is read for half a second, written for so long, and over."""
    request = driver.arrive(name)
    driver.run_until(driver.now + 0.5)
    driver.answer(request)
    driver.run_until(driver.now + writing_seconds)
    driver.complete(request)


def test_those_without_a_first_token_are_told_and_only_if_they_stream():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    requests = [driver.arrive("a") for _ in range(4)]
    streaming = [request for request in requests if request.streams]
    assert 0 < len(streaming) < 4
    assert told_of(driver, "a").awaiting_first_token == len(streaming)
    driver.answer(streaming[0])
    driver.complete(streaming[1])
    assert (told_of(driver, "a").awaiting_first_token, told_of(driver, "a").in_flight) == (len(streaming) - 2, 3)


def test_reading_and_service_times_are_learnt_from_beginnings_and_ends():
    driver = play(ModelSpec("a", max_in_flight=1))
    serving(driver, "a")
    for _ in range(40):
        serve(driver, "a", writing_seconds=1.5)
    told = told_of(driver, "a")
    assert told.residence_seconds == pytest.approx(2.0, rel=0.1)
    # Every fourth request does not stream, and has no first token.
    assert told.prefill_seconds == pytest.approx(0.5, rel=0.1)


def test_the_demand_is_that_of_those_who_serve_or_wait():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"), ModelSpec("c"))
    serving(driver, "a")
    learnt(driver, "a", rate=1.0, prefill_seconds=0.3, residence_seconds=2.0)
    learnt(driver, "b", rate=3.0, prefill_seconds=0.1, residence_seconds=6.0)
    learnt(driver, "c", rate=9.0, prefill_seconds=0.1, residence_seconds=1.0)
    alone = told_of(driver, "a").demand
    assert (alone.load, alone.residence_seconds, alone.waiting_models) == pytest.approx((0.3, 2.0, 0))
    driver.arrive("b")
    both = told_of(driver, "a").demand
    assert (both.load, both.residence_seconds, both.waiting_models) == pytest.approx((0.6, 5.0, 1))


def test_models_on_other_gpus_are_no_demand():
    specs = [ModelSpec(name, OFFLOAD, awake={gpu: 1}) for name, gpu in zip("ab", GPUS, strict=False)]
    driver = play(*specs, capacity=dict.fromkeys(GPUS, 1))
    for name in "ab":
        serving(driver, name)
        learnt(driver, name, rate=1.0, prefill_seconds=0.3, residence_seconds=2.0)
    assert told_of(driver, "a").demand.load == pytest.approx(0.3)


def test_who_waits_for_a_draining_model_does_not_make_its_engine_slow():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    long = driver.arrive("a")
    driver.run_until(10.0)
    driver.answer(long)
    driver.arrive("b")
    record = driver.scheduler.model("a")
    assert isinstance(record.state, Draining)
    record.traffic._reading.fade(0.0)
    driver.arrive("a")
    driver.run_until(20.0)
    driver.complete(long)
    assert record.traffic._reading.new_seconds == 0.0


def test_what_queues_is_behind_from_then_on_and_not_since_the_last_event():
    driver = play(ModelSpec("a", max_in_flight=1))
    serving(driver, "a")
    record = driver.scheduler.model("a")
    first = driver.arrive("a")
    driver.answer(first)
    record.traffic._reading.fade(0.0)
    driver.run_until(driver.now + 30.0)
    waiting = driver.arrive("a")
    driver.run_until(driver.now + 0.5)
    driver.leave(waiting)
    driver.run_until(driver.now + 30.0)
    driver.complete(first)
    assert record.traffic._reading.new_seconds == pytest.approx(0.5)


def test_a_drain_that_is_called_off_was_no_reading():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    driver.answer(driver.arrive("a"))
    driver.run_until(10.0)
    wanted = driver.arrive("b")
    record = driver.scheduler.model("a")
    assert isinstance(record.state, Draining)
    driver.arrive("a"), driver.arrive("a")
    record.traffic._reading.fade(0.0)
    driver.run_until(20.0)
    driver.leave(wanted)
    assert isinstance(record.state, Serving)
    assert record.traffic._reading.new_seconds == 0.0


def test_who_waits_for_another_gpu_is_not_counted():
    specs = [ModelSpec(f"x{number}", awake={GPUS[1]: 1}) for number in range(9)]
    driver = play(
        ModelSpec("a", OFFLOAD, awake={GPUS[0]: 1}),
        *specs,
        capacity={GPUS[0]: 1, GPUS[1]: 1},
    )
    serving(driver, "a")
    for spec in specs:
        driver.arrive(spec.name)
    driver.answer(driver.arrive("a"))
    assert len(driver.scheduler._world.turns) == 8
    assert told_of(driver, "a").demand.waiting_models == 0


def test_a_model_that_is_idle_for_long_is_still_known():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    for _ in range(20):
        serve(driver, "a", writing_seconds=0.5)
        driver.run_until(driver.now + 300.0)
    told = told_of(driver, "a")
    assert told.prefill_seconds == pytest.approx(0.5, rel=0.05)
    assert told.demand.load < 0.02
