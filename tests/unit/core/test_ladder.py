"""Sleepers that go on to evictions that keep less, with time and where host memory is short."""

import math
from dataclasses import replace

from llmux.core.events import EvictDone, HostMemoryShort, SleepRequested
from llmux.core.eviction import STOP, Drain, Eviction
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.states import Asleep, Draining
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import CHECKPOINT, DISCARD, GPUS, OFFLOAD
from tests.support.playbook import LIMITS, performed, play, serving

LADDER = (DISCARD, CHECKPOINT, STOP)
STOPPED = "evict {} retain+stop"


def sleeper(
    name: str, eviction: Eviction = OFFLOAD, ladder: tuple[Eviction, ...] = (STOP,), **more: object
) -> ModelSpec:
    """A model on a GPU that has room for all of them."""
    return ModelSpec(name, eviction, ladder=ladder, placements=(Placement({GPUS[0]: 1}),), **more)  # type: ignore[arg-type]


def fleet(*specs: ModelSpec, limits: Limits, **host_mib: dict[Eviction, int]) -> CoreDriver:
    return play(*specs, limits=limits, capacity={GPUS[0]: 10}, host_mib=host_mib)


def within(maximum_mib: int) -> Limits:
    return replace(LIMITS, host_memory_max_mib=maximum_mib, min_active_seconds=0.0)


def put_to_sleep(driver: CoreDriver, name: str, *, start_seconds: float = 1.0) -> None:
    """Have a cold model serve one request, and leave."""
    request = driver.arrive(name)
    driver.run_until(driver.now + start_seconds)
    driver.finish_wake(name)
    driver.complete(request)
    driver.command(SleepRequested, name)
    driver.finish_evict(name)


def wake_again(driver: CoreDriver, name: str, seconds: float) -> None:
    """Let a sleeper come back for one request in so many seconds, and leave again."""
    request = driver.arrive(name)
    driver.run_until(driver.now + seconds)
    driver.finish_wake(name)
    driver.complete(request)
    driver.command(SleepRequested, name)


def since(driver: CoreDriver, mark: int) -> list[str]:
    return [text for text in performed(driver, mark) if text not in ("SteppedDown", "command done")]


def test_of_two_sleepers_that_do_not_fit_the_one_that_is_asked_for_less_often_goes() -> None:
    driver = fleet(sleeper("a"), sleeper("b"), limits=within(10), a={OFFLOAD: 6}, b={OFFLOAD: 6})
    put_to_sleep(driver, "a")
    driver.run_until(200.0)
    mark = len(driver.log)
    put_to_sleep(driver, "b")
    assert since(driver, mark)[-1] == STOPPED.format("a")
    driver.finish_evict("a")
    assert driver.scheduler.host_mib == 6


def test_one_that_is_asked_for_more_often_stays_though_it_slept_first() -> None:
    driver = fleet(sleeper("a"), sleeper("b"), limits=within(10), a={OFFLOAD: 4}, b={OFFLOAD: 7})
    for _ in range(5):
        driver.arrive("a")
    driver.run_until(2.0)
    driver.finish_wake("a")
    for number in list(driver.in_flight["a"]):
        driver.complete(driver.requests[number])
    driver.command(SleepRequested, "a")
    driver.finish_evict("a")
    mark = len(driver.log)
    put_to_sleep(driver, "b")
    assert since(driver, mark)[-1] == STOPPED.format("b")


def test_what_is_gained_is_weighed_against_what_coming_back_costs() -> None:
    """Both are asked for alike. The cold start of one takes ten times as long, and it holds as much."""
    for slow, quick in (("a", "b"), ("b", "a")):
        seconds = {slow: 50.0, quick: 5.0}
        driver = fleet(sleeper("a"), sleeper("b"), limits=within(1000), a={OFFLOAD: 60}, b={OFFLOAD: 60})
        for name in "ab":
            put_to_sleep(driver, name, start_seconds=seconds[name])
            wake_again(driver, name, 1.0)
            driver.finish_evict(name)
        mark = len(driver.log)
        driver.send(HostMemoryShort(30))
        assert since(driver, mark) == [STOPPED.format(quick)]


def test_where_a_cost_is_not_known_the_next_step_is_taken() -> None:
    driver = fleet(sleeper("a", OFFLOAD, LADDER), limits=within(5), a={OFFLOAD: 6, DISCARD: 1})
    put_to_sleep(driver, "a")
    assert since(driver, 0)[-1] == "evict a discard+checkpoint", "one sleep of an engine's own does not lead to another"
    driver.finish_evict("a")
    assert driver.scheduler.host_mib == 0


def test_an_unknown_cost_does_not_count_as_high() -> None:
    """A cold start is known to be no slower than the wake; of an image nothing is known, and it is the next step."""
    driver = fleet(sleeper("a", OFFLOAD, LADDER), limits=LIMITS, a={OFFLOAD: 6})
    put_to_sleep(driver, "a", start_seconds=1.0)
    wake_again(driver, "a", 5.0)
    driver.run_until(driver.now + 5.0)
    driver.finish_evict("a")
    driver.send(HostMemoryShort(1))
    assert since(driver, 0)[-1] == "evict a discard+checkpoint"


def test_a_step_that_leaves_the_engine_as_it_was_is_not_tried_again() -> None:
    driver = fleet(sleeper("a", OFFLOAD, LADDER), limits=within(5), a={OFFLOAD: 6})
    put_to_sleep(driver, "a")
    instance = driver.scheduler.model("a").instance
    driver.finish_evict("a", EvictDone(instance, Asleep(OFFLOAD)))
    assert since(driver, 0)[-1] == STOPPED.format("a")
    driver.finish_evict("a")
    put_to_sleep(driver, "a")
    assert "evict a discard+checkpoint" not in since(driver, 0)[-2:], (
        "it is known not to fit, and leaves by less at once"
    )


def test_the_first_time_its_size_is_not_known_and_from_then_on_it_leaves_so_that_it_fits() -> None:
    driver = fleet(sleeper("a", OFFLOAD, (DISCARD, STOP)), limits=within(5), a={OFFLOAD: 6, DISCARD: 1})
    put_to_sleep(driver, "a")
    driver.finish_evict("a")
    put_to_sleep(driver, "a")
    assert driver.scheduler.state("a") == Asleep(DISCARD)
    assert driver.scheduler.host_mib == 1


def test_a_model_waits_to_leave_until_a_sleeper_that_is_missed_less_has_made_room() -> None:
    driver = fleet(
        sleeper("a", OFFLOAD, (DISCARD, STOP)), sleeper("b"), limits=within(10), a={OFFLOAD: 6}, b={OFFLOAD: 6}
    )
    put_to_sleep(driver, "b")
    driver.run_until(300.0)
    # It has slept before, when there was room.
    driver.scheduler.model("a").sleep.measured_mib[OFFLOAD] = 6
    serving(driver, "a")
    for _ in range(3):
        driver.complete(driver.arrive("a"))
    driver.run_until(302.0)
    mark = len(driver.log)
    driver.command(SleepRequested, "a")
    assert since(driver, mark) == [STOPPED.format("b")]
    assert isinstance(driver.scheduler.state("a"), Draining)
    driver.finish_evict("b")
    assert since(driver, mark) == [STOPPED.format("b"), "evict a offload+keep_running"]
    assert driver.scheduler.host_mib == 6, "reserved before it is there"


def test_a_model_that_waits_for_room_does_not_wait_beyond_its_drain() -> None:
    driver = fleet(
        sleeper("a", OFFLOAD, (DISCARD, STOP)), sleeper("b"), limits=within(10), a={OFFLOAD: 6}, b={OFFLOAD: 6}
    )
    put_to_sleep(driver, "b")
    driver.run_until(300.0)
    driver.scheduler.model("a").sleep.measured_mib[OFFLOAD] = 6
    serving(driver, "a")
    driver.complete(driver.arrive("a"))
    driver.run_until(302.0)
    mark = len(driver.log)
    driver.command(SleepRequested, "a")
    driver.run_until(302.0 + LIMITS.drain_timeout_seconds)
    assert since(driver, mark) == [STOPPED.format("b"), "evict a discard+keep_running"]


def test_a_sleeper_that_is_about_to_be_woken_keeps_what_it_holds() -> None:
    """The other has to leave for it, and does not fit beside it: so that one keeps less."""
    one_at_a_time = {GPUS[0]: 1}
    driver = play(
        sleeper("a", OFFLOAD, (DISCARD, STOP)),
        sleeper("b", OFFLOAD, (DISCARD, STOP)),
        limits=within(10),
        capacity=one_at_a_time,
        host_mib={"a": {OFFLOAD: 6, DISCARD: 1}, "b": {OFFLOAD: 6, DISCARD: 1}},
    )
    put_to_sleep(driver, "a")
    driver.scheduler.model("b").sleep.measured_mib[OFFLOAD] = 6
    serving(driver, "b")
    mark = len(driver.log)
    driver.arrive("a")
    assert since(driver, mark) == ["evict b discard+keep_running"]
    driver.finish_evict("b")
    assert since(driver, mark)[-1] == "wake a#1 from offload+keep_running"


def test_sleepers_with_frozen_requests_go_last() -> None:
    driver = play(
        sleeper("a", drain=Drain.FREEZE),
        sleeper("b"),
        sleeper("c"),
        limits=replace(within(100), min_active_seconds=50.0),
        capacity={GPUS[0]: 1},
        host_mib={"a": {OFFLOAD: 60}, "b": {OFFLOAD: 5}},
    )
    put_to_sleep(driver, "b")
    driver.arrive("a")
    driver.finish_wake("a")
    driver.run_until(driver.now + 50.0)
    driver.arrive("c")
    driver.finish_evict("a")
    driver.finish_wake("c")
    assert driver.frozen["a"] and driver.scheduler.state("a") == Asleep(OFFLOAD)
    mark = len(driver.log)
    driver.send(HostMemoryShort(1))
    assert since(driver, mark) == [STOPPED.format("b")], "though the other one would free more"
    driver.finish_evict("b")
    driver.send(HostMemoryShort(1))
    assert since(driver, mark)[-1] == STOPPED.format("a")


def test_what_is_on_its_way_back_is_not_asked_for_twice() -> None:
    driver = fleet(sleeper("a"), sleeper("b"), limits=LIMITS, a={OFFLOAD: 6}, b={OFFLOAD: 6})
    put_to_sleep(driver, "a")
    put_to_sleep(driver, "b")
    mark = len(driver.log)
    driver.send(HostMemoryShort(5))
    driver.send(HostMemoryShort(5))
    assert since(driver, mark) == [STOPPED.format("a")]
    driver.send(HostMemoryShort(7))
    assert since(driver, mark) == [STOPPED.format("a"), STOPPED.format("b")]
    driver.send(HostMemoryShort(100))
    assert len(since(driver, mark)) == 2, "nothing is left that could give back any"


def test_with_time_a_sleeper_goes_deeper_step_by_step_until_it_holds_nothing() -> None:
    limits = replace(LIMITS, sleep_deeper_after_seconds=60.0)
    driver = fleet(sleeper("a", OFFLOAD, LADDER), limits=limits, a={OFFLOAD: 6})
    driver.run_until(10.0)
    put_to_sleep(driver, "a")
    mark = len(driver.log)
    driver.run_until(driver.now + 59.9)
    assert since(driver, mark) == []
    driver.run_until(driver.now + 0.1)
    assert since(driver, mark) == ["evict a discard+checkpoint"]
    driver.finish_evict("a")
    driver.run_until(driver.now + 1000.0)
    assert len(since(driver, mark)) == 1, "an image holds no host memory"
    assert driver.timer_at is None or math.isinf(driver.timer_at)


def test_a_request_that_waits_for_a_wake_does_not_put_off_when_a_sleeper_goes_deeper() -> None:
    limits = replace(LIMITS, sleep_deeper_after_seconds=60.0)
    driver = fleet(sleeper("a", OFFLOAD, LADDER), sleeper("b"), limits=limits, a={OFFLOAD: 6})
    put_to_sleep(driver, "a")
    driver.arrive("b")
    driver.run_until(driver.now + 1.0)
    driver.arrive("b")
    mark = len(driver.log)
    driver.run_until(driver.now + 59.0)
    assert since(driver, mark) == ["evict a discard+checkpoint"]


def test_time_does_not_count_for_a_sleeper_that_somebody_waits_for() -> None:
    limits = replace(LIMITS, sleep_deeper_after_seconds=60.0, max_wait_seconds=1000.0, request_timeout_seconds=5000.0)
    driver = fleet(sleeper("a"), limits=limits, a={OFFLOAD: 6})
    put_to_sleep(driver, "a")
    driver.arrive("a")
    driver.run_until(driver.now + 100.0)
    assert STOPPED.format("a") not in since(driver, 0)


def test_without_a_limit_nothing_goes_deeper_by_itself() -> None:
    driver = fleet(sleeper("a"), limits=LIMITS, a={OFFLOAD: 1 << 40})
    put_to_sleep(driver, "a")
    driver.run_until(1e6)
    assert STOPPED.format("a") not in since(driver, 0)
    assert driver.scheduler.model("a").sleep.held_mib == 1 << 40
