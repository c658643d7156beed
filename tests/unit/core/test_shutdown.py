"""The end of a server: what waits, what is in flight, and what is frozen."""

import pytest

from llmux.core.events import EvictDone, ShutdownRequested, SwitchRequested, WakeRequested
from llmux.core.eviction import STOP, Drain
from llmux.core.identifiers import GpuId
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.states import Asleep, Cold, Draining, Failed, Waking
from llmux.errors import EngineDied, ModelNotAllowed, ShuttingDown
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD
from tests.support.core_truth import Place, Request, evicted
from tests.support.playbook import performed, play, serving

FREEZING = {"eviction": OFFLOAD, "drain": Drain.FREEZE}


def two(**more: object) -> CoreDriver:
    return play(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD), **more)  # type: ignore[arg-type]


def switched_away(*models: str | ModelSpec, **more: object) -> tuple[CoreDriver, list[Request]]:
    """All models but the last one have left the GPU with one frozen request each; the last has one in flight."""
    specs = [ModelSpec(one, **FREEZING) if isinstance(one, str) else one for one in models]  # type: ignore[arg-type]
    driver = play(*specs, limits=Limits(), **more)
    requests = []
    before = None
    for spec in specs:
        requests.append(driver.arrive(spec.name))
        driver.command(WakeRequested, spec.name)
        if before is not None:
            driver.run_until(driver.now + 10.0)
            driver.finish_evict(before)
        driver.finish_wake(spec.name)
        before = spec.name
    return driver, requests


def test_shutdown_refuses_what_waits_drains_what_is_in_flight_and_stops_every_engine():
    driver = two()
    serving(driver, "a")
    busy, waiting = driver.arrive("a"), driver.arrive("b")
    number = driver.command(SwitchRequested, "b", pin=True)
    driver.shut_down(10.0)
    assert isinstance(waiting.error, ModelNotAllowed | ShuttingDown)
    assert "shutting down" in str(driver.command_errors[number])
    late = driver.arrive("a")
    assert isinstance(late.error, ShuttingDown)
    assert "shutting down" in str(driver.command_errors[driver.command(WakeRequested, "a")])
    driver.run_until(9.9)
    assert not driver.pending
    driver.run_until(10.0)
    assert isinstance(busy.error, ShuttingDown)
    assert performed(driver)[-2:] == ["revoke ShuttingDown", "evict a retain+stop"]
    driver.finish_evict("a")
    assert driver.stopped
    assert driver.scheduler.is_stopping


def test_shutdown_with_nothing_running_is_done_at_once():
    driver = two()
    driver.shut_down(10.0)
    assert driver.stopped


@pytest.mark.parametrize("error", [None, "aborted"])
def test_shutdown_aborts_a_wake_and_stops_its_engine(error):
    driver = two()
    waiting = driver.arrive("a")
    driver.shut_down(10.0)
    assert isinstance(waiting.error, ShuttingDown)
    assert performed(driver)[-1] == "AbortWake"
    driver.finish_wake("a", error)
    if error is None:
        driver.finish_evict("a")
    assert driver.stopped
    assert driver.scheduler.state("a") == Cold()


@pytest.mark.parametrize("residency", [Asleep(OFFLOAD), Cold()])
def test_shutdown_aborts_a_sleep_and_stops_its_engine(residency):
    driver = two()
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("b")
    assert performed(driver)[-1] == "evict a offload+keep_running"
    driver.shut_down(10.0)
    assert performed(driver)[-2:] == ["reject ShuttingDown", "AbortEvict"]
    driver.finish_evict("a", EvictDone(driver.scheduler.model("a").instance, residency))
    if residency == Asleep(OFFLOAD):
        driver.finish_evict("a")
    assert driver.stopped
    assert driver.scheduler.state("a") == Cold()


def test_shutdown_stops_sleepers_and_hastens_a_drain():
    driver = two()
    serving(driver, "a")
    driver.run_until(6.0)
    done = driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.complete(done)
    driver.arrive("b")
    driver.run_until(12.0)
    driver.arrive("a")
    assert isinstance(driver.scheduler.state("b"), Draining)
    driver.shut_down(3.0)
    assert performed(driver)[-1] == "evict a retain+stop"
    driver.run_until(15.0)
    assert performed(driver)[-2:] == ["revoke ShuttingDown", "evict b retain+stop"]
    driver.finish_evict("a")
    driver.finish_evict("b")
    assert driver.stopped


def test_a_second_order_to_stop_can_only_hasten_the_end():
    driver = two()
    serving(driver, "a")
    driver.arrive("a")
    driver.shut_down(100.0)
    driver.send(ShutdownRequested(1.0))
    driver.run_until(1.0)
    assert performed(driver)[-2:] == ["revoke ShuttingDown", "evict a retain+stop"]


def test_an_engine_that_cannot_be_stopped_does_not_hold_up_the_end():
    driver = two()
    serving(driver, "a")
    driver.shut_down(1.0)
    driver.finish_evict("a", evicted(driver.pending[0], error="still there"))  # type: ignore[arg-type]
    assert driver.stopped
    driver.run_until(500.0)
    assert not driver.pending


def test_a_failed_model_is_no_engine():
    driver = two()
    driver.arrive("a")
    driver.finish_wake("a", "broken")
    assert isinstance(driver.scheduler.state("a"), Failed)
    driver.shut_down(1.0)
    assert driver.stopped


def test_what_is_frozen_resumes_when_what_is_in_flight_has_ended():
    driver, (frozen, busy) = switched_away("a", "b")
    driver.shut_down(20.0)
    assert (frozen.place, busy.place) == (Place.FROZEN, Place.IN_FLIGHT)
    driver.complete(busy)
    assert performed(driver)[-1] == "evict b retain+stop"
    driver.finish_evict("b")
    assert performed(driver)[-2:] == ["Hold", f"wake a#1 from {OFFLOAD}"]
    driver.finish_wake("a")
    assert performed(driver)[-1] == "Thaw"
    assert isinstance(driver.scheduler.state("a"), Draining)
    driver.complete(frozen)
    assert frozen.error is None
    driver.finish_evict("a")
    assert driver.stopped


def test_frozen_models_come_back_one_after_the_other_the_longest_frozen_first():
    driver, (first, second, busy) = switched_away("a", "b", "c")
    driver.shut_down(20.0)
    driver.complete(busy)
    for name, request in (("a", first), ("b", second)):
        driver.finish_evict(driver.pending[0].instance.model)
        driver.finish_wake(name)
        driver.complete(request)
        assert request.error is None
    driver.finish_evict("b")
    assert driver.stopped


def test_a_switch_under_way_is_finished_for_what_it_freezes():
    driver = play(ModelSpec("a", **FREEZING), ModelSpec("b", STOP), limits=Limits())  # type: ignore[arg-type]
    serving(driver, "a")
    request = driver.arrive("a")
    driver.run_until(6.0)
    waiting = driver.arrive("b")
    driver.shut_down(20.0)
    assert isinstance(waiting.error, ShuttingDown)
    driver.finish_evict("a")
    driver.finish_wake("a")
    assert request.place is Place.IN_FLIGHT
    driver.complete(request)
    driver.finish_evict("a")
    assert driver.stopped
    assert request.error is None


def test_a_wake_of_frozen_requests_is_not_aborted():
    driver, (frozen, busy) = switched_away("a", "b")
    driver.complete(busy)
    driver.run_until(driver.now + 20.0)
    driver.finish_evict("b")
    assert isinstance(driver.scheduler.state("a"), Waking)
    driver.shut_down(20.0)
    assert "AbortWake" not in performed(driver)
    driver.finish_wake("a")
    driver.complete(frozen)
    assert frozen.error is None


def test_what_is_still_frozen_at_the_deadline_is_told_so():
    driver, (frozen, busy) = switched_away("a", "b")
    driver.shut_down(20.0)
    driver.run_until(driver.now + 19.9)
    assert frozen.place is Place.FROZEN
    driver.run_until(driver.now + 0.1)
    assert isinstance(frozen.error, ShuttingDown)
    assert isinstance(busy.error, ShuttingDown)
    assert {"evict a retain+stop", "evict b retain+stop"} <= set(performed(driver)[-4:])


def test_a_wake_that_is_under_way_at_the_deadline_is_aborted_once():
    driver, (frozen, busy) = switched_away("a", "b")
    driver.shut_down(20.0)
    driver.complete(busy)
    driver.finish_evict("b")
    driver.run_until(driver.now + 20.0)
    assert isinstance(frozen.error, ShuttingDown)
    driver.arrive("a")
    assert performed(driver).count("AbortWake") == 1
    driver.finish_wake("a", "aborted")
    assert driver.stopped


def test_a_second_order_to_stop_ends_what_is_frozen_at_once():
    driver, (frozen, busy) = switched_away("a", "b")
    driver.shut_down(20.0)
    driver.send(ShutdownRequested(0.0))
    assert isinstance(frozen.error, ShuttingDown)
    assert isinstance(busy.error, ShuttingDown)


def test_nobody_is_woken_for_a_client_that_has_left():
    driver, (frozen, busy) = switched_away("a", "b")
    driver.shut_down(20.0)
    driver.complete(frozen, completed=False)
    assert performed(driver)[-1] == "evict a retain+stop"
    driver.complete(busy)
    driver.finish_evict("a")
    driver.finish_evict("b")
    assert driver.stopped


def test_a_wake_whose_clients_have_left_is_aborted():
    driver, (frozen, busy) = switched_away("a", "b")
    driver.shut_down(20.0)
    driver.complete(busy)
    driver.finish_evict("b")
    driver.complete(frozen, completed=False)
    assert performed(driver)[-1] == "AbortWake"


def test_frozen_requests_whose_engine_cannot_come_back_are_lost():
    driver, (frozen, busy) = switched_away("a", "b")
    frozen.comes_back = False
    driver.shut_down(20.0)
    driver.complete(busy)
    driver.finish_evict("b")
    driver.finish_wake("a", "it broke")
    assert isinstance(frozen.error, EngineDied)
    assert driver.stopped


def test_one_that_does_not_fit_beside_the_others_comes_after_them():
    gpu = GpuId("local", "0")
    asleep = {OFFLOAD: {gpu: 2}}
    specs = (
        ModelSpec("a", **FREEZING, placements=(Placement({gpu: 9}, asleep),)),  # type: ignore[arg-type]
        ModelSpec("b", **FREEZING, placements=(Placement({gpu: 8}, asleep),)),  # type: ignore[arg-type]
        ModelSpec("c", STOP, placements=(Placement({gpu: 6}),)),
    )
    driver, (first, second, busy) = switched_away(*specs, capacity={gpu: 10})
    driver.shut_down(60.0)
    driver.complete(busy)
    driver.finish_evict("c")
    driver.finish_wake("b")
    driver.complete(second)
    driver.finish_evict("b")
    driver.finish_wake("a")
    driver.complete(first)
    driver.finish_evict("a")
    assert driver.stopped
    assert first.error is second.error is None
