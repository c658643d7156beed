"""Where a model is started, and who leaves for it."""

from itertools import combinations

import pytest

from llmux.core.actions import Wake
from llmux.core.events import SleepRequested
from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import GpuId
from llmux.core.settings import ModelSpec, Placement
from llmux.core.vacating import Room
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import GPUS, OFFLOAD
from tests.support.playbook import performed, play, serving

FIRST, SECOND, THIRD = GPUS


def anywhere(name: str, size: int, eviction: Eviction = STOP, *, count: int = 1) -> ModelSpec:
    places = combinations((FIRST, SECOND), count)
    return ModelSpec(name, eviction, placements=tuple(Placement(dict.fromkeys(gpus, size)) for gpus in places))


def on(gpu: GpuId, name: str, size: int, eviction: Eviction = STOP) -> ModelSpec:
    return ModelSpec(name, eviction, placements=(Placement({gpu: size}),))


def places(driver: CoreDriver) -> list[tuple[str, tuple[GpuId, ...]]]:
    return [(action.instance.model, action.gpus) for action in driver.log if isinstance(action, Wake)]


def two_gpus(*specs: ModelSpec) -> CoreDriver:
    return play(*specs, capacity={FIRST: 10, SECOND: 10})


def test_a_model_is_started_where_nothing_has_to_leave():
    driver = two_gpus(*(anywhere(name, 7) for name in "ab"))
    serving(driver, "a")
    serving(driver, "b")
    assert places(driver) == [("a", (FIRST,)), ("b", (SECOND,))]
    assert "evict" not in " ".join(performed(driver))


def test_small_models_share_a_gpu_so_that_a_large_one_finds_another_empty():
    driver = two_gpus(anywhere("a", 3), anywhere("b", 3), anywhere("large", 10))
    for name in ("a", "b", "large"):
        serving(driver, name)
    assert places(driver) == [("a", (FIRST,)), ("b", (FIRST,)), ("large", (SECOND,))]


def test_an_idle_model_leaves_rather_than_a_busy_one():
    driver = two_gpus(on(FIRST, "busy", 7), on(SECOND, "idle", 7), anywhere("c", 7))
    driver.arrive("busy")
    driver.finish_wake("busy")
    serving(driver, "idle")
    driver.run_until(6.0)
    driver.arrive("c")
    driver.finish_evict("idle")
    assert places(driver)[-1] == ("c", (SECOND,))


def test_one_model_leaves_rather_than_two():
    driver = two_gpus(on(FIRST, "a", 5), on(FIRST, "b", 5), on(SECOND, "c", 9), anywhere("d", 9))
    for name in "abc":
        serving(driver, name)
    driver.run_until(6.0)
    driver.arrive("d")
    driver.finish_evict("c")
    assert places(driver)[-1] == ("d", (SECOND,))


def test_a_sleeping_model_comes_back_to_where_its_engine_is():
    driver = two_gpus(anywhere("a", 7, OFFLOAD), on(FIRST, "b", 7), on(SECOND, "c", 1))
    serving(driver, "a")
    driver.run_until(6.0)
    request = driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.arrive("a")
    driver.run_until(20.0)
    assert performed(driver)[-1] == "admit b", "b answers still, on the GPU that a needs"
    driver.complete(request)
    driver.finish_evict("b")
    assert places(driver)[-1] == ("a", (FIRST,))


def test_a_model_that_needs_both_gpus_is_not_starved_by_those_that_need_one():
    """Once it is overdue, the GPU that is free first is kept free for it."""
    driver = two_gpus(anywhere("a", 10), anywhere("b", 10), anywhere("both", 10, count=2))
    for name in "ab":
        serving(driver, name)
    driver.run_until(10.0)
    driver.arrive("both")
    assert performed(driver)[-2:] == ["evict a retain+stop", "evict b retain+stop"]
    driver.arrive("a")
    driver.finish_evict("a")
    assert performed(driver)[-1] == "evict b retain+stop", "a would fit now, and has to wait"
    driver.finish_evict("b")
    assert places(driver)[-1] == ("both", (FIRST, SECOND))


def one_gpu(*specs: ModelSpec, size: int = 10) -> CoreDriver:
    return play(*specs, capacity={FIRST: size})


def asleep(driver: CoreDriver, *names: str) -> None:
    """Bring models in turn, and have the operator put them to sleep."""
    for name in names:
        serving(driver, name)
        driver.command(SleepRequested, name, eviction=OFFLOAD)
        driver.finish_evict(name)


def pending(driver: CoreDriver) -> list[tuple[str, str]]:
    return [(type(action).__name__, action.instance.model) for action in driver.pending]


def test_two_sleepers_that_both_fit_wake_at_the_same_time():
    driver = one_gpu(*(on(FIRST, name, 5, OFFLOAD) for name in "ab"))
    asleep(driver, "a", "b")
    driver.arrive("a")
    driver.arrive("b")
    assert pending(driver) == [("Wake", "a"), ("Wake", "b")]


def test_two_switches_of_one_gpu_have_victims_of_their_own():
    driver = one_gpu(*(on(FIRST, name, 5, OFFLOAD) for name in "abcd"))
    asleep(driver, "c", "d")
    for name in "ab":
        serving(driver, name)
    driver.run_until(6.0)
    driver.arrive("c")
    driver.arrive("d")
    assert pending(driver) == [("Evict", "a"), ("Evict", "b")]
    driver.finish_evict("b")
    assert pending(driver) == [("Evict", "a"), ("Wake", "d")]
    driver.finish_evict("a")
    assert pending(driver) == [("Wake", "c"), ("Wake", "d")]


def test_a_second_switch_does_not_take_what_the_first_waits_for():
    driver = one_gpu(on(FIRST, "large", 10, OFFLOAD), on(FIRST, "a", 5), on(FIRST, "small", 3, OFFLOAD))
    asleep(driver, "large", "small")
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("large")
    driver.arrive("small")
    assert pending(driver) == [("Evict", "a")], "small would fit now, and large would not fit then"
    driver.finish_evict("a")
    assert pending(driver) == [("Wake", "large")]


def test_what_the_first_switch_leaves_over_is_for_the_second():
    driver = one_gpu(on(FIRST, "a", 7, OFFLOAD), on(FIRST, "b", 6, OFFLOAD), on(FIRST, "c", 4, OFFLOAD))
    asleep(driver, "b", "c")
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.arrive("c")
    assert pending(driver) == [("Evict", "a")]
    driver.finish_evict("a")
    assert pending(driver) == [("Wake", "b"), ("Wake", "c")]


def test_an_engine_that_starts_has_its_gpu_to_itself_until_it_serves():
    driver = two_gpus(on(FIRST, "a", 3), on(FIRST, "b", 3), on(FIRST, "c", 3, OFFLOAD), on(SECOND, "d", 3))
    asleep(driver, "c")
    for name in "abcd":
        driver.arrive(name)
    assert pending(driver) == [("Wake", "a"), ("Wake", "d")], "d starts on another GPU"
    driver.finish_wake("a")
    assert pending(driver) == [("Wake", "b"), ("Wake", "d")]
    driver.finish_wake("b")
    assert pending(driver) == [("Wake", "c"), ("Wake", "d")]


def test_a_target_whose_engine_died_starts_after_the_wake_beside_it():
    driver = one_gpu(*(on(FIRST, name, 5, OFFLOAD) for name in "abcd"))
    asleep(driver, "c", "d")
    for name in "ab":
        serving(driver, name)
    driver.run_until(6.0)
    driver.arrive("c")
    driver.arrive("d")
    driver.finish_evict("a")
    driver.exit("d")
    driver.finish_evict("d")
    driver.finish_evict("b")
    assert pending(driver) == [("Wake", "c")]
    driver.finish_wake("c")
    assert performed(driver)[-1] == "wake d#2"


def test_an_overdue_model_keeps_its_gpu_for_itself():
    driver = one_gpu(on(FIRST, "busy", 7, OFFLOAD), on(FIRST, "b", 7, OFFLOAD), on(FIRST, "small", 2, OFFLOAD))
    asleep(driver, "b", "small")
    request = driver.arrive("busy")
    driver.finish_wake("busy")
    driver.arrive("b")
    driver.run_until(4.0)
    driver.arrive("small")
    assert pending(driver) == [("Wake", "small")], "b is not overdue yet, and small fits beside both"
    driver.finish_wake("small")
    driver.run_until(5.0)
    driver.complete(request)
    assert pending(driver) == [("Evict", "busy")]


def started(driver: CoreDriver, model: str, seconds: float) -> None:
    """Bring a cold model, whose start takes so long, by a request that is then answered."""
    request = driver.arrive(model)
    driver.run_until(driver.now + seconds)
    driver.finish_wake(model)
    driver.complete(request)


def used(driver: CoreDriver, model: str, times: int) -> None:
    """Requests for a model that serves, one a second, each answered at once."""
    for _ in range(times):
        driver.run_until(driver.now + 1.0)
        driver.complete(driver.arrive(model))


def test_who_has_been_unused_for_longest_leaves_however_often_it_was_asked_for_before():
    driver = one_gpu(*(on(FIRST, name, 5) for name in "abc"))
    started(driver, "a", 2.0)
    used(driver, "a", 20)
    started(driver, "b", 2.0)
    driver.run_until(30.0)
    driver.arrive("c")
    assert pending(driver) == [("Evict", "a")]


@pytest.mark.parametrize(("seconds_between", "leaves"), [(0.0, "b"), (10.0, "a")])
def test_who_takes_long_to_come_back_stays_longer_and_not_for_ever(seconds_between: float, leaves: str):
    driver = one_gpu(*(on(FIRST, name, 5) for name in "abc"))
    started(driver, "a", 20.0)
    driver.run_until(driver.now + seconds_between)
    started(driver, "b", 2.0)
    driver.run_until(driver.now + 8.0)
    # "a" takes ten times as long to come back, so it stays 1.8 times as long: it has been unused for 10 s or 20 s.
    driver.arrive("c")
    assert pending(driver) == [("Evict", leaves)]


def test_where_nothing_is_known_the_one_unused_for_longest_leaves():
    driver = one_gpu(*(on(FIRST, name, 5) for name in "abc"))
    for name in "ab":
        started(driver, name, 2.0)
    used(driver, "a", 1)
    driver.run_until(3_000_000.0)
    driver.arrive("c")
    assert pending(driver) == [("Evict", "b")]


def test_an_idle_model_is_stopped_rather_than_a_busy_one_interrupted():
    driver = one_gpu(
        ModelSpec("idle", OFFLOAD, placements=(Placement({FIRST: 5}, {OFFLOAD: {FIRST: 2}}),)),
        on(FIRST, "busy", 5, OFFLOAD),
        on(FIRST, "c", 5),
    )
    serving(driver, "idle")
    driver.arrive("busy")
    driver.finish_wake("busy")
    driver.run_until(30.0)
    driver.arrive("c")
    assert performed(driver)[-1] == "evict idle retain+stop"


def test_who_leaves_for_one_model_does_not_leave_again_for_another_that_needs_the_same():
    driver = play(*(on(FIRST, name, 5) for name in "abcd"), capacity={FIRST: 10})
    serving(driver, "a")
    serving(driver, "b")
    room, model = Room(driver.scheduler._world), driver.scheduler.model
    first = room.best_open(model("c"))
    assert first is not None
    assert first.plan.victims == ("a",)
    room.claim(model("c"), first.plan)
    second = room.best_open(model("d"))
    assert second is not None
    assert second.plan.victims == ("b",)
