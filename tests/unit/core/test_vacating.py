"""Where a model is started, and who leaves for it."""

from itertools import combinations

from llmux.core.actions import Wake
from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import GpuId
from llmux.core.settings import ModelSpec, Placement
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
