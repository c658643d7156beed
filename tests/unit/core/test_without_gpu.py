"""Models that need no GPU: woken at once beside whatever is on it, never a victim, never a reason to wait."""

from llmux.core.events import SwitchRequested
from llmux.core.eviction import STOP, Eviction
from llmux.core.settings import WITHOUT_GPU, ModelSpec
from llmux.core.states import Serving
from tests.support.core_driver import CoreDriver
from tests.support.playbook import performed, play, serving

OFFLOAD = Eviction.parse("offload+keep_running")
NEVER_LEAVES = Eviction.parse("retain+keep_running")


def play_with_remote() -> CoreDriver:
    return play(
        ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD), ModelSpec("r", NEVER_LEAVES, placements=(WITHOUT_GPU,))
    )


def test_it_is_woken_beside_a_busy_model_and_evicts_nothing() -> None:
    driver = play_with_remote()
    serving(driver, "a")
    driver.arrive("a")
    began = len(driver.log)
    driver.arrive("r")
    driver.finish_wake("r")
    assert performed(driver, began) == ["wake r#1", "SwitchDone", "admit r"]
    assert isinstance(driver.scheduler.state("a"), Serving)


def test_it_is_woken_while_a_switch_occupies_the_gpu() -> None:
    driver = play_with_remote()
    driver.arrive("a")
    began = len(driver.log)
    driver.arrive("r")
    assert performed(driver, began) == ["wake r#1"]
    assert driver.scheduler.switching() == ("", "a")
    assert driver.scheduler.active_model() == "a"


def test_it_is_never_a_victim_even_where_it_could_leave() -> None:
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD), ModelSpec("r", STOP, placements=(WITHOUT_GPU,)))
    serving(driver, "r")
    serving(driver, "a")
    began = len(driver.log)
    driver.arrive("b")
    driver.run_until(30.0)
    assert performed(driver, began) == [f"evict a {OFFLOAD}"]


def test_the_operator_can_bring_it_during_a_switch() -> None:
    driver = play_with_remote()
    driver.arrive("a")
    began = len(driver.log)
    driver.command(SwitchRequested, "r")
    assert performed(driver, began) == ["wake r#1"]


def test_the_model_on_the_gpu_is_the_active_one() -> None:
    driver = play_with_remote()
    serving(driver, "r")
    assert driver.scheduler.active_model() == "r"
    serving(driver, "a")
    driver.run_until(1.0)
    assert driver.scheduler.active_model() == "a"
