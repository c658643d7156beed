"""What a policy sees: who waits for a first token, and what models ask of a GPU together."""

import pytest

from llmux.core.policies.base import Incumbent
from llmux.core.policy_view import SchedulerView
from llmux.core.settings import ModelSpec, Placement
from llmux.core.states import Draining, Serving
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import GPUS, OFFLOAD
from tests.support.playbook import play, serving


def incumbent(driver: CoreDriver, name: str) -> Incumbent:
    """What a policy sees of a serving model now, its estimates up to date."""
    world = driver.scheduler._world
    world.clock.now = driver.now
    for model in world.models.values():
        model.sample()
    return SchedulerView(world, set()).incumbent(driver.scheduler.model(name))


def assume(driver: CoreDriver, name: str, *, rate: float, prefill_seconds: float, residence_seconds: float) -> None:
    """Set a model's estimates."""
    estimates = driver.scheduler.model(name).estimates
    estimates.sample(driver.now)
    estimates.arrivals_per_second = rate
    for mean, seconds in ((estimates._prefill, prefill_seconds), (estimates._residence, residence_seconds)):
        mean.new_count, mean.new_seconds = 100, 100 * seconds
        mean.fade(0.0)


def serve(driver: CoreDriver, name: str, *, decode_seconds: float, streams: bool = True) -> None:
    """A request with half a second of prefill."""
    request = driver.arrive(name, streams=streams)
    driver.run_until(driver.now + 0.5)
    driver.answer(request)
    driver.run_until(driver.now + decode_seconds)
    driver.complete(request)


def test_only_streaming_requests_wait_for_a_first_token():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    streaming = [driver.arrive("a") for _ in range(3)]
    driver.arrive("a", streams=False)
    assert incumbent(driver, "a").awaiting_first_token == len(streaming)
    driver.answer(streaming[0])
    driver.complete(streaming[1])
    assert (incumbent(driver, "a").awaiting_first_token, incumbent(driver, "a").in_flight) == (len(streaming) - 2, 3)


def test_prefill_and_residence_times_are_estimated_from_first_tokens_and_ends():
    driver = play(ModelSpec("a", max_in_flight=1))
    serving(driver, "a")
    for number in range(40):
        serve(driver, "a", decode_seconds=1.5, streams=number % 4 != 0)
    seen = incumbent(driver, "a")
    assert seen.residence_seconds == pytest.approx(2.0, rel=0.1)
    assert seen.prefill_seconds == pytest.approx(0.5, rel=0.1)


def test_demand_counts_serving_and_waiting_models():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"), ModelSpec("c"))
    serving(driver, "a")
    assume(driver, "a", rate=1.0, prefill_seconds=0.3, residence_seconds=2.0)
    assume(driver, "b", rate=3.0, prefill_seconds=0.1, residence_seconds=6.0)
    assume(driver, "c", rate=9.0, prefill_seconds=0.1, residence_seconds=1.0)
    alone = incumbent(driver, "a").demand
    assert (alone.load, alone.residence_seconds, alone.waiting_models) == pytest.approx((0.3, 2.0, 0))
    driver.arrive("b")
    both = incumbent(driver, "a").demand
    assert (both.load, both.residence_seconds, both.waiting_models) == pytest.approx((0.6, 5.0, 1))


def test_models_on_other_gpus_are_no_demand():
    specs = [ModelSpec(name, OFFLOAD, placements=(Placement({gpu: 1}),)) for name, gpu in zip("ab", GPUS, strict=False)]
    driver = play(*specs, capacity=dict.fromkeys(GPUS, 1))
    for name in "ab":
        serving(driver, name)
        assume(driver, name, rate=1.0, prefill_seconds=0.3, residence_seconds=2.0)
    assert incumbent(driver, "a").demand.load == pytest.approx(0.3)


def test_requests_queued_behind_a_drain_do_not_count_as_prefill():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    long = driver.arrive("a")
    driver.run_until(10.0)
    driver.answer(long)
    driver.arrive("b")
    record = driver.scheduler.model("a")
    assert isinstance(record.state, Draining)
    record.estimates._prefill.fade(0.0)
    driver.arrive("a")
    driver.run_until(20.0)
    driver.complete(long)
    assert record.estimates._prefill.new_seconds == 0.0


def test_prefill_time_begins_with_the_arrival_and_not_with_the_last_event():
    driver = play(ModelSpec("a", max_in_flight=1))
    serving(driver, "a")
    record = driver.scheduler.model("a")
    first = driver.arrive("a")
    driver.answer(first)
    record.estimates._prefill.fade(0.0)
    driver.run_until(driver.now + 30.0)
    waiting = driver.arrive("a")
    driver.run_until(driver.now + 0.5)
    driver.leave(waiting)
    driver.run_until(driver.now + 30.0)
    driver.complete(first)
    assert record.estimates._prefill.new_seconds == pytest.approx(0.5)


def test_a_drain_that_is_called_off_is_not_prefill():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    driver.answer(driver.arrive("a"))
    driver.run_until(10.0)
    wanted = driver.arrive("b")
    record = driver.scheduler.model("a")
    assert isinstance(record.state, Draining)
    driver.arrive("a"), driver.arrive("a")
    record.estimates._prefill.fade(0.0)
    driver.run_until(20.0)
    driver.leave(wanted)
    assert isinstance(record.state, Serving)
    assert record.estimates._prefill.new_seconds == 0.0


def test_models_that_wait_for_another_gpu_are_not_counted():
    specs = [ModelSpec(f"x{number}", placements=(Placement({GPUS[1]: 1}),)) for number in range(9)]
    driver = play(
        ModelSpec("a", OFFLOAD, placements=(Placement({GPUS[0]: 1}),)),
        *specs,
        capacity={GPUS[0]: 1, GPUS[1]: 1},
    )
    serving(driver, "a")
    for spec in specs:
        driver.arrive(spec.name)
    driver.answer(driver.arrive("a"))
    assert len(driver.scheduler._world.candidates) == 8
    assert incumbent(driver, "a").demand.waiting_models == 0


def test_estimates_survive_long_idleness():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    for _ in range(20):
        serve(driver, "a", decode_seconds=0.5)
        driver.run_until(driver.now + 300.0)
    seen = incumbent(driver, "a")
    assert seen.prefill_seconds == pytest.approx(0.5, rel=0.05)
    assert seen.demand.load < 0.02
