"""What a policy sees: who waits for a first token, how long requests take, and who waits for the GPU."""

import pytest

from llmux.core.eviction import Drain
from llmux.core.groups import Group
from llmux.core.policies.base import Candidate, Incumbent, Waiting, WaitingModel
from llmux.core.policy_view import SchedulerView
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.states import Draining, Serving
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import GPUS, OFFLOAD
from tests.support.core_truth import Place
from tests.support.playbook import play, serving

FREEZING = ModelSpec("a", OFFLOAD, drain=Drain.FREEZE)


def incumbent(driver: CoreDriver, name: str) -> Incumbent:
    """What a policy sees of a serving model now, its estimates up to date."""
    world = driver.scheduler._world
    world.clock.now = driver.now
    for model in world.models.values():
        model.sample()
    return SchedulerView(world).incumbent(driver.scheduler.model(name))


def waiting_for(driver: CoreDriver, name: str) -> Waiting:
    return SchedulerView(driver.scheduler._world).waiting_for(name)


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


def test_all_that_waits_for_the_gpu_is_counted_by_its_weight():
    driver = play(FREEZING, ModelSpec("b", weight=3.0), ModelSpec("c"))
    serving(driver, "a")
    assert waiting_for(driver, "a") == Waiting()
    for name in ("b", "b", "c"):
        driver.arrive(name)
    waiting = waiting_for(driver, "a")
    assert (waiting.models, waiting.requests) == (2, 3.0 + 3.0 + 1.0)


def test_it_is_known_for_how_long_requests_have_been_frozen():
    driver = play(FREEZING, ModelSpec("b", weight=2.0), limits=Limits())
    serving(driver, "a")
    serving_since = driver.now
    driver.arrive("a")
    driver.run_until(6.0)
    driver.arrive("b")
    frozen_at = driver.now
    driver.finish_evict("a")
    driver.finish_wake("b")
    waiting = waiting_for(driver, "b")
    assert (waiting.models, waiting.requests) == (1, 1.0), "what is frozen waits too"
    stay = frozen_at - serving_since
    assert waiting.each == (WaitingModel(frozen_at, Limits().request_timeout_seconds, stay),)
    driver.complete(driver.in_place(Place.IN_FLIGHT)[0])
    driver.run_until(20.0)
    driver.finish_evict("b")
    driver.finish_wake("a")
    assert incumbent(driver, "a").pause_seconds == driver.now - frozen_at


def test_requests_queued_behind_a_drain_do_not_count_as_prefill():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    long = driver.arrive("a")
    driver.run_until(10.0)
    driver.answer(long)
    driver.arrive("b")
    record = driver.scheduler.model("a")
    assert isinstance(record.state, Draining)
    record.estimates._prefill.new_seconds = 0.0
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
    record.estimates._prefill.new_seconds = 0.0
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
    record.estimates._prefill.new_seconds = 0.0
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
    assert waiting_for(driver, "a") == Waiting()


def test_estimates_survive_long_idleness():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    for _ in range(20):
        serve(driver, "a", decode_seconds=0.5)
        driver.run_until(driver.now + 300.0)
    seen = incumbent(driver, "a")
    assert seen.prefill_seconds == pytest.approx(0.5, rel=0.05)


def test_a_rival_is_in_the_way_of_one_model_and_not_of_another_that_needs_the_same():
    models = {"a": 3, "rival": 4, "other": 4}
    driver = play(
        *(ModelSpec(name, OFFLOAD, placements=(Placement({GPUS[0]: size}),)) for name, size in models.items()),
        capacity={GPUS[0]: 10},
        groups=(Group(("a", "rival"), exclusive=True),),
    )
    serving(driver, "a")
    view = SchedulerView(driver.scheduler._world)
    in_the_way = {
        name: [one.model for one in view.in_the_way(Candidate(name, 0.0, 1))] for name in ("other", "rival", "other")
    }
    assert in_the_way == {"other": [], "rival": ["a"]}
