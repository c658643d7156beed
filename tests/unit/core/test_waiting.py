"""What requests wait for, as the scheduler tells it."""

from collections.abc import Mapping

from llmux.core.events import ModeChanged, SwitchRequested
from llmux.core.eviction import STOP, Drain
from llmux.core.policies.cost_aware import CostAware
from llmux.core.settings import ModelSpec, Placement
from llmux.core.waiting import (
    BackingOff,
    Behind,
    ForDrain,
    ForMemory,
    ForSlot,
    ForTurn,
    Leaving,
    NotAllowed,
    OnItsWay,
    WaitReason,
)
from llmux.errors import FailureReason
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import GPUS, OFFLOAD
from tests.support.playbook import play, serving

FIRST, SECOND, _ = GPUS


def reasons(driver: CoreDriver) -> Mapping[str, WaitReason]:
    return driver.scheduler.wait_reasons(driver.now)


def both_gpus(name: str) -> ModelSpec:
    return ModelSpec(name, placements=(Placement({FIRST: 9, SECOND: 9}),))


def on(gpu: object, name: str) -> ModelSpec:
    return ModelSpec(name, OFFLOAD, placements=(Placement({gpu: 9}),))  # type: ignore[dict-item]


def test_nobody_waits():
    driver = play(ModelSpec("a"), ModelSpec("b"))
    assert reasons(driver) == {}
    serving(driver, "a")
    assert reasons(driver) == {}


def test_a_start_tells_how_long_it_takes_once_one_has_been_seen():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    driver.arrive("a")
    driver.run_until(30.0)
    assert reasons(driver) == {"a": OnItsWay(30.0, None, from_cold=True)}
    driver.run_until(55.0)
    driver.finish_wake("a")
    driver.exit("a")
    driver.finish_evict("a")
    driver.arrive("a")
    driver.run_until(90.0)
    assert reasons(driver) == {"a": OnItsWay(35.0, 20.0, from_cold=True)}
    driver.run_until(111.0)
    assert reasons(driver) == {"a": OnItsWay(56.0, None, from_cold=True)}


def test_a_switch_waits_for_a_drain_and_then_for_the_memory():
    driver = play(ModelSpec("a"), ModelSpec("b"))
    requests = [driver.arrive("a") for _ in range(3)]
    driver.finish_wake("a")
    driver.run_until(5.0)
    driver.arrive("b")
    driver.run_until(13.0)
    assert reasons(driver) == {"b": ForDrain(("a",), 3, left_seconds_max=12.0)}
    for request in requests:
        driver.complete(request)
    assert reasons(driver) == {"b": ForMemory(("a",))}
    driver.arrive("a")
    assert reasons(driver)["a"] == Leaving("b")
    driver.finish_evict("a")
    assert reasons(driver)["b"] == OnItsWay(0.0, None, from_cold=True)


def test_a_model_that_may_stay_for_now():
    driver = play(ModelSpec("a"), ModelSpec("b"), policy=CostAware(1000.0, 1000.0))
    driver.arrive("a")
    driver.finish_wake("a")
    driver.arrive("b")
    driver.run_until(4.0)
    assert reasons(driver) == {"b": ForTurn(("a",), overdue_in_seconds=11.0)}


def test_the_first_of_two_that_wait():
    driver = play(ModelSpec("a"), ModelSpec("b"), ModelSpec("c"))
    driver.arrive("a")
    driver.finish_wake("a")
    driver.run_until(5.0)
    driver.arrive("b")
    driver.arrive("c")
    assert reasons(driver) == {"b": ForDrain(("a",), 1, 20.0), "c": Behind("b")}


def test_small_models_are_behind_a_large_overdue_one():
    driver = play(both_gpus("large"), on(FIRST, "a"), on(SECOND, "b"), on(SECOND, "c"), capacity={FIRST: 9, SECOND: 9})
    driver.arrive("a")
    driver.finish_wake("a")
    driver.arrive("b")
    driver.arrive("large")
    driver.run_until(16.0)
    driver.arrive("c")
    found = reasons(driver)
    assert found["b"] == OnItsWay(16.0, None, from_cold=True)
    assert found["large"] == Behind("b")
    assert found["c"] == Behind("large")


def test_an_operators_command_goes_first():
    driver = play(ModelSpec("a"), ModelSpec("b"), ModelSpec("c"))
    serving(driver, "a")
    driver.command(SwitchRequested, "b")
    driver.arrive("c")
    assert reasons(driver) == {"c": Behind("b")}


def test_all_places_taken():
    driver = play(ModelSpec("a", max_in_flight=2))
    for _ in range(3):
        driver.arrive("a")
    driver.finish_wake("a")
    assert reasons(driver) == {"a": ForSlot(2)}


def test_a_back_off():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD))
    serving(driver, "a")
    driver.run_until(10.0)
    serving_b = driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.complete(serving_b)
    driver.run_until(20.0)
    driver.arrive("a")
    driver.finish_evict("b")
    driver.finish_wake("a", error="no answer")
    driver.run_until(20.5)
    assert reasons(driver) == {"a": BackingOff(1.5, FailureReason("no answer"))}


def test_frozen_requests_of_a_model_that_the_operator_has_not_served():
    driver = play(ModelSpec("a", OFFLOAD, drain=Drain.FREEZE), ModelSpec("b", STOP))
    driver.arrive("a")
    driver.finish_wake("a")
    driver.run_until(6.0)
    driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.send(ModeChanged(manual=True))
    assert reasons(driver) == {"a": NotAllowed("b")}


def test_only_the_first_candidates_are_looked_at_closely():
    names = [f"m{number:02}" for number in range(12)]
    driver = play(ModelSpec("a"), *map(ModelSpec, names), policy=CostAware(1000.0, 1000.0))
    driver.arrive("a")
    driver.finish_wake("a")
    for name in names:
        driver.arrive(name)
    found = reasons(driver)
    assert [found[name] for name in names] == [ForTurn(("a",), 15.0)] * 8 + [Behind("m00")] * 4
