"""What the operator asks for, scenario by scenario."""

import pytest

from llmux.core.events import (
    EvictionChanged,
    ModeChanged,
    SleepRequested,
    SwitchRequested,
    WakeRequested,
)
from llmux.core.eviction import STOP
from llmux.core.identifiers import ALL_OF_IT
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.states import Asleep, Auto, Cold, Draining, Manual, Serving
from llmux.errors import ModelNotAllowed
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import CHECKPOINT, DISCARD, GPUS, NEVER_LEAVES, OFFLOAD, SUSPEND
from tests.support.core_truth import evicted
from tests.support.playbook import performed, play, serving


def two(**more: object) -> CoreDriver:
    return play(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD), **more)  # type: ignore[arg-type]


def test_switch_in_automatic_mode_leaves_the_mode_and_ends_when_the_model_serves():
    driver = two()
    serving(driver, "a")
    number = driver.command(SwitchRequested, "b")
    driver.run_until(5.0)
    driver.finish_evict("a")
    assert number in driver.commands
    driver.finish_wake("b")
    assert driver.command_errors == {number: None}
    assert driver.scheduler.mode == Auto()
    assert driver.command(SwitchRequested, "b") in driver.command_errors


def test_pin_refuses_the_others_and_lets_the_pinned_model_wait():
    driver = two()
    serving(driver, "a")
    driver.run_until(6.0)
    number = driver.command(SwitchRequested, "b", pin=True)
    assert driver.scheduler.mode == Manual("b", "b")
    refused, waiting = driver.arrive("a"), driver.arrive("b")
    assert isinstance(refused.error, ModelNotAllowed)
    assert refused.error.active == "b"
    driver.finish_evict("a")
    driver.finish_wake("b")
    assert waiting.admitted_at is not None
    assert driver.command_errors == {number: None}


def test_a_failed_pin_rolls_the_mode_back():
    driver = two()
    number = driver.command(SwitchRequested, "a", pin=True)
    driver.finish_wake("a", "no such file")
    assert driver.command_errors == {number: "no such file"}
    assert driver.scheduler.mode == Auto()


def test_a_failed_pin_refuses_waiters_that_the_former_mode_does_not_serve():
    driver = two()
    serving(driver, "b")
    driver.run_until(6.0)
    driver.leave(driver.arrive("a"))
    driver.finish_evict("b")
    driver.command(WakeRequested, "a")
    driver.finish_wake("a")
    driver.send(ModeChanged(manual=True))
    driver.run_until(12.0)
    driver.command(SwitchRequested, "b", pin=True)
    driver.finish_evict("a")
    waiting = driver.arrive("b")
    driver.finish_wake("b", "wake_up answered 500")
    assert driver.scheduler.mode == Manual(None, "a")
    assert isinstance(waiting.error, ModelNotAllowed)


def test_a_failed_pin_under_a_later_one_leaves_nothing_to_roll_back_to():
    driver = two()
    driver.command(SwitchRequested, "a", pin=True)
    driver.command(SwitchRequested, "b", pin=True)
    driver.finish_wake("a", "broken")
    assert driver.scheduler.mode == Manual("b", "b")
    driver.finish_wake("b", "broken too")
    assert driver.scheduler.mode == Auto()


def test_a_pin_that_is_not_accepted_changes_nothing():
    driver = two(limits=Limits(commands_max=1))
    driver.command(WakeRequested, "a")
    number = driver.command(SwitchRequested, "b", pin=True)
    assert "too many" in str(driver.command_errors[number])
    assert driver.scheduler.mode == Auto()


def test_manual_mode_serves_only_the_active_model_and_drops_deferred_switches():
    driver = two()
    serving(driver, "a")
    deferred = driver.arrive("b")
    driver.send(ModeChanged(manual=True))
    assert isinstance(deferred.error, ModelNotAllowed)
    assert driver.scheduler.mode == Manual(None, "a")
    driver.run_until(100.0)
    assert driver.scheduler.state("a") == Serving(0.0)
    assert driver.arrive("a").admitted_at == 100.0
    driver.send(ModeChanged(manual=False))
    driver.arrive("b")
    assert isinstance(driver.scheduler.state("a"), Draining)


def test_manual_mode_without_an_active_model_serves_none():
    driver = two()
    driver.send(ModeChanged(manual=True))
    refused = driver.arrive("a")
    assert isinstance(refused.error, ModelNotAllowed)
    assert refused.error.active is None


def test_a_switch_in_manual_mode_moves_the_pin():
    driver = two()
    driver.send(ModeChanged(manual=True))
    driver.command(SwitchRequested, "a")
    assert driver.scheduler.mode == Manual("a", "a")


def test_a_switch_under_way_is_the_active_model_of_manual_mode():
    driver = two()
    serving(driver, "a")
    driver.run_until(6.0)
    waiting = driver.arrive("b")
    driver.send(ModeChanged(manual=True))
    assert driver.scheduler.mode == Manual(None, "b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    assert waiting.admitted_at is not None


def test_a_pin_on_the_model_that_is_just_draining_calls_the_switch_off_and_ends_at_once():
    driver = two()
    serving(driver, "a")
    driver.run_until(6.0)
    busy, refused = driver.arrive("a"), driver.arrive("b")
    assert isinstance(driver.scheduler.state("a"), Draining)
    number = driver.command(SwitchRequested, "a", pin=True)
    assert isinstance(refused.error, ModelNotAllowed)
    assert driver.command_errors == {number: None}
    assert driver.scheduler.state("a") == Serving(0.0)
    driver.complete(busy)


def test_wake_makes_room_and_leaves_the_mode():
    driver = two()
    serving(driver, "a")
    driver.run_until(6.0)
    number = driver.command(WakeRequested, "b")
    assert performed(driver)[-1] == "evict a offload+keep_running"
    driver.finish_evict("a")
    driver.finish_wake("b")
    assert driver.command_errors == {number: None}
    assert driver.scheduler.mode == Auto()


def test_sleep_drains_what_is_in_flight_and_leaves_the_gpu_idle():
    driver = two()
    serving(driver, "a")
    busy = driver.arrive("a")
    number = driver.command(SleepRequested, "a", eviction=DISCARD)
    assert isinstance(driver.scheduler.state("a"), Draining)
    driver.complete(busy)
    assert performed(driver)[-1] == "evict a discard+keep_running"
    driver.finish_evict("a")
    assert driver.command_errors == {number: None}
    assert driver.scheduler.active_model() is None


@pytest.mark.parametrize("shrinks", [True, False])
def test_a_model_whose_weights_stay_goes_to_sleep_only_if_something_of_it_leaves(shrinks: bool):
    driver = play(
        ModelSpec("a", NEVER_LEAVES, placements=(Placement(ALL_OF_IT, shrinks=shrinks),)), ModelSpec("b", OFFLOAD)
    )
    serving(driver, "a")
    number = driver.command(SleepRequested, "a")
    if shrinks:
        assert performed(driver)[-1] == "evict a retain+keep_running"
        driver.finish_evict("a")
        assert driver.scheduler.state("a") == Asleep(NEVER_LEAVES)
    assert driver.command_errors == {number: None}
    assert isinstance(driver.scheduler.state("a"), Serving) is not shrinks


def test_a_model_of_which_only_a_part_leaves_makes_way_for_another():
    driver = play(
        ModelSpec("a", NEVER_LEAVES, placements=(Placement(ALL_OF_IT, shrinks=True),)), ModelSpec("b", OFFLOAD)
    )
    serving(driver, "a")
    driver.arrive("b")
    driver.run_until(6.0)
    assert performed(driver)[-1] == "evict a retain+keep_running"


@pytest.mark.parametrize(
    ("asleep", "asked", "evicts"),
    [
        (OFFLOAD, DISCARD, False),
        (OFFLOAD, SUSPEND, True),
        (SUSPEND, CHECKPOINT, True),
        (CHECKPOINT, STOP, True),
        (CHECKPOINT, SUSPEND, False),
        (SUSPEND, SUSPEND, False),
        (OFFLOAD, None, False),
    ],
)
def test_a_sleeping_model_is_only_put_into_a_deeper_sleep(asleep, asked, evicts):
    driver = two()
    serving(driver, "a")
    driver.command(SleepRequested, "a", eviction=asleep)
    driver.finish_evict("a")
    number = driver.command(SleepRequested, "a", eviction=asked)
    assert bool(driver.pending) == evicts
    if evicts:
        driver.finish_evict("a")
        assert driver.scheduler.state("a") == (Cold() if asked == STOP else Asleep(asked))
    assert driver.command_errors[number] is None


def test_sleep_ends_also_when_another_way_off_the_gpu_was_taken():
    driver = two()
    serving(driver, "a")
    number = driver.command(SleepRequested, "a", eviction=CHECKPOINT)
    driver.finish_evict("a", evicted(driver.pending[0], Asleep(OFFLOAD)))  # type: ignore[arg-type]
    assert driver.command_errors == {number: None}
    assert not driver.pending


def test_a_sleep_whose_eviction_fails_says_so():
    driver = two()
    serving(driver, "a")
    number = driver.command(SleepRequested, "a")
    driver.finish_evict("a", evicted(driver.pending[0], error="still there"))  # type: ignore[arg-type]
    assert driver.command_errors == {number: "still there"}


@pytest.mark.parametrize("eviction", [None, STOP])
def test_sleeping_a_model_that_does_not_run_is_done_at_once(eviction):
    driver = two()
    assert driver.command_errors.get(driver.command(SleepRequested, "a", eviction=eviction), "open") is None


def test_a_model_that_never_leaves_is_not_put_to_sleep():
    driver = two()
    serving(driver, "a")
    assert driver.command_errors.get(driver.command(SleepRequested, "a", eviction=NEVER_LEAVES), "open") is None
    assert isinstance(driver.scheduler.state("a"), Serving)


def test_sleep_while_draining_for_a_switch_takes_the_way_that_was_asked_for():
    driver = two()
    serving(driver, "a")
    driver.run_until(6.0)
    busy = driver.arrive("a")
    left = driver.arrive("b")
    driver.command(SleepRequested, "a", eviction=DISCARD)
    driver.leave(left)
    assert isinstance(driver.scheduler.state("a"), Draining), "the operator still wants it asleep"
    driver.complete(busy)
    assert performed(driver)[-1] == "evict a discard+keep_running"


def test_sleep_while_waking_serves_the_waiters_first():
    driver = two()
    waiting = driver.arrive("a")
    driver.command(SleepRequested, "a")
    driver.finish_wake("a")
    assert waiting.admitted_at is not None
    assert isinstance(driver.scheduler.state("a"), Draining)


def test_an_override_holds_from_the_next_eviction_on():
    driver = two()
    serving(driver, "a")
    driver.send(EvictionChanged("a", CHECKPOINT))
    driver.command(SleepRequested, "a")
    assert performed(driver)[-1] == "evict a discard+checkpoint"


def test_commands_go_one_after_the_other():
    driver = two()
    serving(driver, "a")
    sleep, wake = driver.command(SleepRequested, "a"), driver.command(WakeRequested, "b")
    driver.finish_evict("a")
    assert sleep in driver.command_errors
    driver.finish_wake("b")
    assert wake in driver.command_errors


def on_two_gpus() -> CoreDriver:
    places = [Placement({gpu: 10}) for gpu in GPUS[:2]]
    specs = [ModelSpec(name, OFFLOAD, placements=tuple(places)) for name in "abc"]
    return play(*specs, capacity=dict.fromkeys(GPUS[:2], 10))


def test_wakes_on_different_gpus_go_along_with_each_other_in_their_order():
    driver = on_two_gpus()
    first, second, third = (driver.command(WakeRequested, name) for name in "abc")
    assert performed(driver) == ["wake a#1", "wake b#1"]
    driver.finish_wake("b")
    assert (second in driver.command_errors, first in driver.command_errors) == (True, False)
    driver.finish_wake("a")
    driver.run_until(5.0)
    assert performed(driver)[-1] == "evict a offload+keep_running", "the third has to wait for the least time"
    driver.finish_evict("a")
    driver.finish_wake("c")
    assert third in driver.command_errors


def test_nothing_goes_along_with_a_command_that_is_more_than_a_wake():
    driver = on_two_gpus()
    driver.command(WakeRequested, "a")
    driver.command(SwitchRequested, "b", pin=True)
    driver.command(WakeRequested, "c")
    assert performed(driver) == ["wake a#1"]
    driver.finish_wake("a")
    assert performed(driver)[-2:] == ["command done", "wake b#1"]


def test_a_wake_that_fails_leaves_those_beside_it_alone():
    driver = on_two_gpus()
    first, second = (driver.command(WakeRequested, name) for name in "ab")
    driver.finish_wake("a", "exit code 1")
    assert driver.command_errors == {first: "exit code 1"}
    driver.finish_wake("b")
    assert driver.command_errors[second] is None
