"""Models of a group that are together: who comes along, who does not, and when they leave."""

from llmux.core.events import SleepRequested
from llmux.core.groups import Group
from llmux.core.identifiers import GpuId
from llmux.core.settings import ModelSpec, Placement
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import GPUS, OFFLOAD
from tests.support.playbook import performed, play, serving

FIRST, SECOND = GPUS[:2]


def sized(name: str, size: int, gpu: GpuId = FIRST, idle_seconds: float = float("inf")) -> ModelSpec:
    return ModelSpec(name, OFFLOAD, placements=(Placement({gpu: size}),), idle_seconds=idle_seconds)


def together(*specs: ModelSpec, names: tuple[str, ...] = ("a", "b"), gpus: int = 1) -> CoreDriver:
    group = Group(names, together=True)
    return play(*specs, capacity=dict.fromkeys(GPUS[:gpus], 10), groups=(group,))


def test_another_one_comes_as_soon_as_the_first_is_there():
    driver = together(sized("a", 5), sized("b", 5))
    driver.arrive("a")
    assert performed(driver) == ["wake a#1"], "no two engines start on a GPU together"
    driver.finish_wake("a")
    assert performed(driver)[-1] == "wake b#1"


def test_the_whole_group_comes_one_after_the_other():
    driver = together(sized("a", 3), sized("b", 3), sized("c", 3), names=("a", "b", "c"))
    driver.arrive("a")
    for name in "abc":
        driver.finish_wake(name)
    assert [action for action in performed(driver) if action.startswith("wake")] == ["wake a#1", "wake b#1", "wake c#1"]


def test_nobody_leaves_for_one_that_comes_along():
    driver = together(sized("a", 5), sized("b", 5), sized("other", 3))
    serving(driver, "other")
    driver.arrive("a")
    driver.finish_wake("a")
    assert "wake b#1" not in performed(driver)


def test_it_does_not_come_while_somebody_waits():
    driver = together(sized("a", 5), sized("b", 5), sized("other", 5))
    driver.arrive("a")
    driver.arrive("other")
    driver.finish_wake("a")
    assert performed(driver)[-1] == "wake other#1"


def test_it_does_not_come_for_one_that_nobody_uses():
    driver = together(sized("a", 5), sized("b", 5), sized("other", 5))
    serving(driver, "other")
    request = driver.arrive("a")
    driver.finish_wake("a")
    driver.complete(request)
    driver.command(SleepRequested, "other", eviction=None)
    driver.finish_evict("other")
    assert "wake b#1" not in performed(driver)
    driver.arrive("a")
    assert performed(driver)[-1] == "wake b#1"


def test_one_that_the_operator_put_to_sleep_stays_away():
    driver = together(sized("a", 5), sized("b", 5))
    request = driver.arrive("a")
    driver.finish_wake("a")
    driver.finish_wake("b")
    driver.command(SleepRequested, "b", eviction=None)
    driver.finish_evict("b")
    driver.complete(request)
    driver.arrive("a")
    assert performed(driver)[-1] == "admit a"


def test_they_leave_when_all_have_been_idle():
    driver = together(sized("a", 5, idle_seconds=20.0), sized("b", 5, idle_seconds=60.0))
    request = driver.arrive("a")
    driver.finish_wake("a")
    driver.finish_wake("b")
    driver.run_until(100.0)
    assert not any(action.startswith("evict") for action in performed(driver)), "b has been idle, but a is used"
    driver.complete(request)
    driver.run_until(119.0)
    assert not any(action.startswith("evict") for action in performed(driver))
    driver.run_until(120.0)
    assert performed(driver)[-1] == "evict a offload+keep_running"
    driver.finish_evict("a")
    driver.run_until(159.0)
    assert performed(driver)[-1] == "evict a offload+keep_running", "b is not used, and does not bring it back"
    driver.run_until(160.0)
    assert performed(driver)[-1] == "evict b offload+keep_running"


def test_a_failed_start_is_tried_again_after_its_back_off_only():
    driver = together(sized("a", 5), sized("b", 5))
    driver.arrive("a")
    driver.finish_wake("a")
    driver.finish_wake("b", "it broke")
    wakes = performed(driver).count("wake b#1")
    driver.run_until(0.5)
    assert wakes == 1
    assert performed(driver)[-1] == "SwitchFailed"
    driver.run_until(60.0)
    assert performed(driver)[-1] == "wake b#2"


def test_it_comes_to_another_gpu():
    driver = together(sized("a", 10), sized("b", 10, SECOND), gpus=2)
    driver.arrive("a")
    driver.finish_wake("a")
    assert performed(driver)[-1] == "wake b#1"
