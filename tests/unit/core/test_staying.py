"""Models that stay on the GPUs, by a pin or a persistent group; and groups of which one model at a time is there."""

import pytest

from llmux.core.events import ModeChanged, SleepRequested, SwitchRequested, Unpinned, WakeRequested
from llmux.core.groups import Group
from llmux.core.identifiers import GpuId
from llmux.core.settings import ModelSpec, Placement
from llmux.core.states import Asleep, Draining, Serving
from llmux.errors import ModelNotAllowed
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import GPUS, OFFLOAD
from tests.support.core_truth import TrackedRequest
from tests.support.playbook import performed, play, serving

FIRST, SECOND = GPUS[:2]


def sized(name: str, size: int, *gpus: GpuId, keep: bool = False) -> ModelSpec:
    """A model that may be on any of these GPUs, the first one unless told otherwise."""
    places = tuple(Placement({gpu: size}) for gpu in gpus or (FIRST,))
    return ModelSpec(name, OFFLOAD, placements=places, keep=keep)


def on_gpus(*specs: ModelSpec, groups: tuple[Group, ...] = (), gpus: int = 1) -> CoreDriver:
    return play(*specs, capacity=dict.fromkeys(GPUS[:gpus], 10), groups=groups)


def is_refused(request: TrackedRequest, *, beside: str) -> bool:
    return (
        isinstance(request.error, ModelNotAllowed) and request.error.active == beside and beside in str(request.error)
    )


def test_a_pinned_model_stays_and_another_one_leaves():
    driver = on_gpus(sized("pinned", 5, keep=True), sized("a", 5), sized("b", 5))
    serving(driver, "pinned")
    driver.run_until(10.0)
    serving(driver, "a")
    driver.run_until(20.0)
    driver.arrive("b")
    assert performed(driver)[-1] == "evict a offload+keep_running", "pinned has been idle for longer"


def test_what_does_not_fit_beside_a_pinned_model_is_refused_at_once():
    driver = on_gpus(sized("pinned", 5, keep=True), sized("large", 6), sized("small", 5))
    before = driver.arrive("large")
    driver.finish_wake("large")
    driver.complete(before)
    driver.run_until(6.0)
    driver.arrive("pinned")
    driver.finish_evict("large")
    driver.finish_wake("pinned")
    assert is_refused(driver.arrive("large"), beside="pinned")
    assert driver.arrive("small").error is None


def test_what_waits_for_such_a_model_is_refused_when_the_pinned_one_comes():
    driver = on_gpus(sized("pinned", 5, keep=True), sized("large", 6), sized("a", 10))
    serving(driver, "a")
    driver.run_until(4.0)
    pinned, large = driver.arrive("pinned"), driver.arrive("large")
    assert large.error is None
    driver.run_until(5.0)
    assert is_refused(large, beside="pinned")
    assert pinned.error is None


def test_requests_in_flight_are_drained_and_not_frozen_in_a_model_that_could_not_come_back():
    driver = on_gpus(sized("pinned", 5, keep=True), sized("large", 6))
    request = driver.arrive("large")
    driver.finish_wake("large")
    driver.run_until(6.0)
    driver.arrive("pinned")
    assert isinstance(driver.scheduler.state("large"), Draining)
    driver.complete(request)
    assert performed(driver)[-1] == "evict large offload+keep_running"


def test_a_pinned_model_may_be_anywhere_and_another_one_is_started_elsewhere():
    driver = on_gpus(sized("pinned", 7, keep=True), sized("b", 7, FIRST, SECOND), sized("c", 7, SECOND), gpus=2)
    serving(driver, "b")
    driver.run_until(6.0)
    driver.arrive("pinned")
    driver.finish_evict("b")
    driver.finish_wake("pinned")
    driver.arrive("b")
    assert performed(driver)[-1] == "evict b retain+stop", "where its engine sleeps is no room for it any more"
    driver.finish_evict("b")
    assert performed(driver)[-1] == "wake b#2"


def test_a_pin_beside_others_lasts_until_it_is_taken_away():
    driver = on_gpus(sized("a", 5), sized("b", 6))
    driver.command(WakeRequested, "a", keep=True)
    driver.finish_wake("a")
    assert is_refused(driver.arrive("b"), beside="a")
    driver.send(ModeChanged(manual=False))
    assert is_refused(driver.arrive("b"), beside="a"), "the mode is another matter"
    driver.send(Unpinned())
    driver.run_until(6.0)
    driver.arrive("b")
    assert performed(driver)[-1] == "evict a offload+keep_running"


def test_a_pin_that_fails_leaves_things_as_they_were():
    driver = on_gpus(sized("a", 5), sized("b", 6))
    first = driver.command(WakeRequested, "a", keep=True)
    second = driver.command(WakeRequested, "a", keep=True)
    driver.finish_wake("a", "it broke")
    assert driver.command_errors == {first: "it broke", second: "it broke"}
    assert not driver.scheduler.model("a").kept
    assert driver.arrive("b").error is None


def test_an_unpin_before_a_pin_has_failed_is_not_undone():
    driver = on_gpus(sized("a", 5, keep=True), sized("b", 6))
    driver.command(WakeRequested, "a", keep=True)
    driver.send(Unpinned())
    driver.finish_wake("a", "it broke")
    assert not driver.scheduler.model("a").kept


@pytest.mark.parametrize("command", [SwitchRequested, WakeRequested])
def test_a_command_for_what_cannot_come_fails_and_says_why(command):
    driver = on_gpus(sized("pinned", 5, keep=True), sized("large", 6))
    serving(driver, "pinned")
    number = driver.command(command, "large")
    assert "'pinned', which stays on the GPUs" in driver.command_errors[number]


def test_the_operator_may_put_a_pinned_model_to_sleep():
    driver = on_gpus(sized("pinned", 5, keep=True), sized("large", 6))
    serving(driver, "pinned")
    driver.command(SleepRequested, "pinned")
    driver.finish_evict("pinned")
    driver.arrive("large")
    assert performed(driver)[-1] == "wake large#1"


def test_a_pinned_model_does_not_leave_for_being_idle():
    spec = ModelSpec("a", OFFLOAD, idle_seconds=1.0, keep=True)
    driver = play(spec)
    serving(driver, "a")
    driver.run_until(100.0)
    assert isinstance(driver.scheduler.state("a"), Serving)


def test_models_of_an_exclusive_group_are_never_on_the_gpus_together():
    driver = on_gpus(sized("a", 2), sized("b", 2, SECOND), sized("c", 2), gpus=2, groups=(Group(("a", "b"), True),))
    serving(driver, "a")
    serving(driver, "c")
    driver.run_until(6.0)
    driver.arrive("b")
    assert performed(driver)[-1] == "evict a offload+keep_running"
    driver.arrive("a")
    driver.finish_evict("a")
    driver.finish_wake("b")
    assert isinstance(driver.scheduler.state("a"), Asleep), "its place is free, and b is in flight"
    assert isinstance(driver.scheduler.state("c"), Serving)


def test_two_rivals_that_wait_come_one_after_the_other():
    driver = on_gpus(sized("a", 2), sized("b", 2, SECOND), gpus=2, groups=(Group(("a", "b"), True),))
    first, second = driver.arrive("a"), driver.arrive("b")
    assert performed(driver) == ["wake a#1"]
    driver.finish_wake("a")
    driver.complete(first)
    driver.run_until(6.0)
    driver.finish_evict("a")
    driver.finish_wake("b")
    assert second.error is None
    assert performed(driver)[-1] == "admit b"


def test_models_of_a_persistent_group_leave_for_each_other_and_for_nobody_else():
    driver = on_gpus(
        sized("a", 5), sized("b", 8), sized("c", 5), sized("d", 6), groups=(Group(("a", "b"), False, True),)
    )
    serving(driver, "a")
    driver.run_until(6.0)
    serving(driver, "c")
    driver.run_until(12.0)
    assert is_refused(driver.arrive("d"), beside="a")
    driver.arrive("b")
    assert performed(driver)[-2:] == ["evict c offload+keep_running", "evict a offload+keep_running"]


def test_a_switch_to_where_one_that_stays_grew_meanwhile_is_decided_anew():
    driver = on_gpus(
        *(sized("pinned", 3, keep=True), sized("idle", 5), sized("busy", 5, SECOND)),
        sized("target", 7, FIRST, SECOND),
        gpus=2,
    )
    serving(driver, "pinned")
    serving(driver, "idle")
    request = driver.arrive("busy")
    driver.finish_wake("busy")
    driver.run_until(10.0)
    driver.arrive("target")
    assert performed(driver)[-1] == "evict idle offload+keep_running"
    driver.measure("pinned", 4)
    driver.finish_evict("idle")
    assert isinstance(driver.scheduler.state("busy"), Draining)
    driver.complete(request)
    driver.finish_evict("busy")
    assert performed(driver)[-1] == "wake target#1"


def test_one_that_leaves_for_another_of_its_group_shuts_nobody_out():
    driver = on_gpus(
        *(sized("a", 3), sized("b", 3), sized("small", 5)),
        groups=(Group(("a", "b"), exclusive=True, persistent=True),),
    )
    serving(driver, "a")
    driver.run_until(10.0)
    driver.arrive("b")
    small = driver.arrive("small")
    assert small.error is None
    driver.finish_evict("a")
    driver.finish_wake("b")
    assert performed(driver)[-2:] == ["admit b", "wake small#1"]


def test_one_of_a_persistent_group_leaves_for_its_like_only_where_nobody_else_does():
    group = Group(("a", "b", "c"), persistent=True)
    driver = on_gpus(*(sized(name, 3) for name in ("a", "b", "c", "other")), groups=(group,))
    for name in ("a", "b", "other"):
        serving(driver, name)
    driver.run_until(10.0)
    driver.arrive("c")
    assert performed(driver)[-1] == "evict other offload+keep_running", "a and b have been idle for as long"
