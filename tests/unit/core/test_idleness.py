"""Models that leave the GPU when nobody asks for them."""

from llmux.core.events import ModeChanged
from llmux.core.identifiers import ALL_OF_IT
from llmux.core.settings import ModelSpec, Placement
from tests.support.core_scenarios import NEVER_LEAVES, OFFLOAD
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
