"""Models that leave the GPU when nobody asks for them."""

import math

import pytest

from llmux.core.events import DefaultChanged, ModeChanged, SleepRequested, SwitchRequested
from llmux.core.eviction import Drain
from llmux.core.identifiers import ALL_OF_IT
from llmux.core.settings import ModelSpec, Placement
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import GPUS, NEVER_LEAVES, OFFLOAD
from tests.support.playbook import performed, play, serving

LEFT = "evict a offload+keep_running"


def test_a_model_leaves_once_it_has_been_idle_for_long_enough():
    driver = play(ModelSpec("a", OFFLOAD, idle_seconds=60.0))
    serving(driver, "a")
    driver.run_until(59.9)
    assert LEFT not in performed(driver)
    driver.run_until(60.0)
    assert performed(driver)[-1] == LEFT
    driver.finish_evict("a")
    driver.arrive("a")
    assert performed(driver)[-1] == "wake a#1 from offload+keep_running"


def test_each_request_begins_the_time_anew():
    driver = play(ModelSpec("a", OFFLOAD, idle_seconds=60.0))
    serving(driver, "a")
    driver.run_until(50.0)
    driver.complete(driver.arrive("a"))
    driver.run_until(109.0)
    assert LEFT not in performed(driver)
    driver.run_until(110.0)
    assert performed(driver)[-1] == LEFT


def test_a_busy_model_is_not_idle_however_long_it_takes():
    driver = play(ModelSpec("a", OFFLOAD, idle_seconds=60.0))
    request = driver.arrive("a")
    driver.finish_wake("a")
    driver.run_until(1000.0)
    assert LEFT not in performed(driver)
    driver.complete(request)
    driver.run_until(1060.0)
    assert performed(driver)[-1] == LEFT


def test_it_stays_for_the_least_time_that_every_model_does():
    driver = play(ModelSpec("a", OFFLOAD, idle_seconds=1.0))
    serving(driver, "a")
    driver.run_until(4.9)
    assert LEFT not in performed(driver)
    driver.run_until(5.0)
    assert performed(driver)[-1] == LEFT


def test_what_the_operator_holds_on_the_gpu_stays():
    driver = play(ModelSpec("a", OFFLOAD, idle_seconds=60.0))
    serving(driver, "a")
    driver.send(ModeChanged(manual=True))
    driver.run_until(1000.0)
    assert LEFT not in performed(driver)
    driver.send(ModeChanged(manual=False))
    assert performed(driver)[-1] == LEFT


def test_a_model_that_never_leaves_does_not_for_idleness_either():
    driver = play(ModelSpec("a", NEVER_LEAVES, idle_seconds=60.0))
    serving(driver, "a")
    driver.run_until(1000.0)
    assert not [text for text in performed(driver) if text.startswith("evict")]


def test_without_a_time_it_stays_until_another_needs_its_place():
    driver = play(ModelSpec("a", OFFLOAD))
    serving(driver, "a")
    driver.run_until(1_000_000.0)
    assert LEFT not in performed(driver)


def test_a_model_whose_weights_stay_gives_back_the_rest():
    placement = Placement(ALL_OF_IT, shrinks=True)
    driver = play(ModelSpec("a", NEVER_LEAVES, placements=(placement,), idle_seconds=60.0))
    serving(driver, "a")
    driver.run_until(90.0)
    assert performed(driver)[-1] == f"evict a {NEVER_LEAVES}"


def test_a_request_says_how_long_its_model_stays_until_it_leaves():
    driver = play(ModelSpec("a", OFFLOAD, idle_seconds=60.0))
    serving(driver, "a")
    driver.complete(driver.arrive("a", keep_alive_seconds=20.0))
    driver.complete(driver.arrive("a"))
    driver.run_until(19.9)
    assert driver.scheduler.leaves_at("a") == 20.0
    assert LEFT not in performed(driver)
    driver.run_until(20.0)
    assert performed(driver)[-1] == LEFT
    driver.finish_evict("a")
    serving(driver, "a")
    assert driver.scheduler.leaves_at("a") == 80.0, "as configured again"


@pytest.mark.parametrize("short_cuts", [True, False])
def test_the_last_request_that_says_something_decides(short_cuts: bool):
    driver = play(ModelSpec("a", OFFLOAD), short_cuts=short_cuts)
    serving(driver, "a")
    for keep_alive_seconds in (10.0, 5.0, 40.0):
        driver.complete(driver.arrive("a", keep_alive_seconds=keep_alive_seconds))
    driver.run_until(39.9)
    assert LEFT not in performed(driver)
    driver.run_until(40.0)
    assert performed(driver)[-1] == LEFT


@pytest.mark.parametrize("short_cuts", [True, False])
def test_a_client_that_is_done_with_a_model_has_it_leave_at_once(short_cuts: bool):
    driver = play(ModelSpec("a", OFFLOAD), short_cuts=short_cuts)
    serving(driver, "a")
    first, last = driver.arrive("a", keep_alive_seconds=0.0), driver.arrive("a")
    driver.complete(first)
    assert LEFT not in performed(driver), "others are not done"
    driver.complete(last)
    assert performed(driver)[-1] == LEFT


def test_a_request_can_keep_a_model_until_its_place_is_needed():
    driver = play(ModelSpec("a", OFFLOAD, idle_seconds=60.0), ModelSpec("b"))
    serving(driver, "a")
    driver.complete(driver.arrive("a", keep_alive_seconds=math.inf))
    driver.run_until(10_000.0)
    assert LEFT not in performed(driver)
    driver.arrive("b")
    assert performed(driver)[-1] == LEFT


def test_what_a_frozen_request_said_counts_again_when_it_resumes():
    driver = play(ModelSpec("a", OFFLOAD, drain=Drain.FREEZE), ModelSpec("b", OFFLOAD))
    serving(driver, "a")
    request = driver.arrive("a", keep_alive_seconds=30.0)
    driver.run_until(6.0)
    other = driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.complete(other)
    driver.run_until(100.0)
    driver.finish_evict("b")
    driver.finish_wake("a")
    driver.complete(request)
    assert driver.scheduler.leaves_at("a") == 130.0


def returning(*specs: ModelSpec, default: str = "a", **more: object) -> CoreDriver:
    """A driver in which the first model is the default one, and on the GPU."""
    driver = play(*specs, **more)  # type: ignore[arg-type]
    driver.send(DefaultChanged(default))
    driver.finish_wake(default)
    return driver


def took_turns(driver: CoreDriver) -> None:
    """``b`` has been on the GPU for one request, and ``a``, which left for it, is asleep."""
    request = driver.arrive("b")
    driver.run_until(driver.now + 5.0)
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.complete(request)


def test_the_default_model_comes_at_once_where_nothing_is_in_its_way():
    driver = play(ModelSpec("a"), ModelSpec("b"))
    driver.send(DefaultChanged("a"))
    assert performed(driver) == ["wake a#1"]
    driver.finish_wake("a")
    driver.run_until(10_000.0)
    assert performed(driver)[-1] == "SwitchDone", "and it stays"


def test_it_comes_back_when_nobody_has_asked_for_the_others_for_long_enough():
    driver = returning(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD, idle_seconds=30.0))
    took_turns(driver)
    idle_at = driver.now
    driver.run_until(idle_at + 29.9)
    assert driver.scheduler.leaves_at("b") == idle_at + 30.0
    driver.run_until(idle_at + 30.0)
    assert performed(driver)[-1] == "evict b offload+keep_running"
    driver.finish_evict("b")
    assert performed(driver)[-1] == "wake a#1 from offload+keep_running"


def test_a_model_without_a_time_of_its_own_gives_way_after_five_minutes():
    driver = returning(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD))
    took_turns(driver)
    idle_at = driver.now
    assert driver.scheduler.leaves_at("b") == idle_at + 300.0
    driver.run_until(idle_at + 299.0)
    assert performed(driver)[-1] != "evict b offload+keep_running"
    driver.run_until(idle_at + 300.0)
    assert performed(driver)[-1] == "evict b offload+keep_running"


def test_it_does_not_come_back_where_a_request_wants_another_to_stay():
    driver = returning(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD))
    took_turns(driver)
    driver.complete(driver.arrive("b", keep_alive_seconds=math.inf))
    driver.run_until(100_000.0)
    assert "evict b offload+keep_running" not in performed(driver)


def test_it_makes_nobody_leave_that_is_not_in_its_way():
    small = [ModelSpec(name, OFFLOAD, placements=(Placement({GPUS[0]: 4}),)) for name in "ab"]
    driver = returning(*small, capacity={GPUS[0]: 10})
    serving(driver, "b")
    driver.run_until(10_000.0)
    assert not [text for text in performed(driver) if text.startswith("evict")]


def test_it_stays_away_after_the_operator_has_put_it_to_sleep_until_it_is_asked_for():
    driver = returning(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD, idle_seconds=30.0))
    driver.command(SleepRequested, "a")
    driver.finish_evict("a")
    driver.run_until(10_000.0)
    assert performed(driver)[-1] == "command done"
    serving(driver, "a")
    took_turns(driver)
    driver.run_until(driver.now + 30.0)
    driver.finish_evict("b")
    assert performed(driver)[-1] == "wake a#1 from offload+keep_running"


def test_it_does_not_come_back_beside_what_the_operator_has_pinned():
    driver = returning(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD, idle_seconds=30.0))
    driver.command(SwitchRequested, "b", pin=True)
    driver.run_until(10.0)
    driver.finish_evict("a")
    driver.finish_wake("b")
    driver.run_until(10_000.0)
    assert "evict b offload+keep_running" not in performed(driver)


def test_a_request_for_another_model_goes_before_it():
    driver = returning(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD, idle_seconds=30.0), ModelSpec("c"))
    took_turns(driver)
    driver.run_until(driver.now + 30.0)
    driver.arrive("c")
    driver.finish_evict("b")
    assert performed(driver)[-1] == "wake c#1"


def test_a_start_of_it_that_fails_is_tried_again_after_a_pause():
    driver = play(ModelSpec("a"))
    driver.send(DefaultChanged("a"))
    driver.finish_wake("a", "exit code 1")
    assert performed(driver)[-1] == "SwitchFailed"
    driver.run_until(2.0)
    assert performed(driver)[-1] == "wake a#2"
