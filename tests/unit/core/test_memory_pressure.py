"""Other programs take GPU memory: idle models make room, and busy ones stay."""

from llmux.core.events import DefaultChanged, MemoryPressure, ModeChanged
from llmux.core.identifiers import ALL_OF_IT, EVERY_GPU, Footprint, GpuId
from llmux.core.settings import ModelSpec, Placement
from llmux.core.states import Asleep, Cold, Serving
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import CHECKPOINT, OFFLOAD
from tests.support.playbook import performed, play, serving

GPU = GpuId("local", "0")
ONE_GPU = {GPU: 1000}


def sized(name: str, mib: int, residue: int = 0) -> ModelSpec:
    asleep = {OFFLOAD: {GPU: residue}} if residue else {}
    return ModelSpec(name, OFFLOAD, placements=(Placement({GPU: mib}, asleep),))


def see(driver: CoreDriver, missing: Footprint) -> None:
    driver.send(MemoryPressure(missing))


def evictions(driver: CoreDriver) -> list[str]:
    return [text for text in performed(driver) if text.startswith("evict")]


def test_as_many_idle_models_leave_as_are_needed_and_busy_ones_stay():
    driver = play(*(sized(name, 200) for name in "abcd"), capacity=ONE_GPU)
    for name in "abcd":
        serving(driver, name)
        driver.run_until(driver.now + 1.0)
    driver.arrive("a")
    driver.run_until(20.0)
    see(driver, {GPU: 300})
    assert evictions(driver) == ["evict b offload+keep_running", "evict c offload+keep_running"], "idle for longest"
    see(driver, {GPU: 300})
    assert len(evictions(driver)) == 2, "what is on its way off the GPU is not missing any more"
    driver.finish_evict("b")
    driver.finish_evict("c")
    assert len(evictions(driver)) == 2
    see(driver, {GPU: 100})
    assert evictions(driver)[2:] == ["evict d offload+keep_running"]
    assert isinstance(driver.scheduler.state("a"), Serving)


def test_a_busy_model_leaves_when_it_has_nothing_to_do_any_more():
    driver = play(sized("a", 200), capacity=ONE_GPU)
    serving(driver, "a")
    busy = driver.arrive("a")
    driver.run_until(20.0)
    see(driver, {GPU: 300})
    assert evictions(driver) == []
    driver.complete(busy)
    assert evictions(driver) == ["evict a offload+keep_running"]


def test_an_idle_model_has_its_minimum_time():
    driver = play(sized("a", 200), capacity=ONE_GPU)
    serving(driver, "a")
    see(driver, {GPU: 300})
    driver.run_until(4.9)
    assert evictions(driver) == []
    driver.run_until(5.0)
    assert evictions(driver) == ["evict a offload+keep_running"]


def test_sleepers_are_stopped_when_nothing_idle_is_left():
    driver = play(*(sized(name, 900, residue=20) for name in "ab"), capacity=ONE_GPU)
    serving(driver, "a")
    driver.run_until(10.0)
    driver.arrive("b")
    driver.finish_evict("a")
    driver.finish_wake("b")
    see(driver, {GPU: 50})
    assert evictions(driver)[1:] == ["evict a retain+stop"], "b is busy"
    driver.finish_evict("a")
    assert driver.scheduler.state("a") == Cold()


def test_sleepers_of_which_nothing_is_known_are_stopped_one_by_one():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD), ModelSpec("c", CHECKPOINT))
    serving(driver, "a")
    for leaving, coming in ("ab", "bc"):
        driver.run_until(driver.now + 10.0)
        request = driver.arrive(coming)
        driver.finish_evict(leaving)
        driver.finish_wake(coming)
        driver.complete(request)
    driver.run_until(driver.now + 10.0)
    before = len(evictions(driver))
    see(driver, ALL_OF_IT)
    assert evictions(driver)[before:] == [f"evict c {CHECKPOINT}"]
    driver.finish_evict("c")
    see(driver, ALL_OF_IT)
    assert evictions(driver)[before + 1 :] == ["evict a retain+stop"]
    driver.finish_evict("a")
    see(driver, ALL_OF_IT)
    assert evictions(driver)[before + 2 :] == ["evict b retain+stop"]
    driver.finish_evict("b")
    see(driver, ALL_OF_IT)
    assert len(evictions(driver)) == before + 3, "what is in an image on the disk has no GPU memory"
    assert isinstance(driver.scheduler.state("c"), Asleep)


def test_the_default_model_does_not_come_back_while_memory_is_missing():
    driver = play(ModelSpec("a", OFFLOAD))
    driver.send(DefaultChanged("a"))
    driver.finish_wake("a")
    driver.run_until(10.0)
    see(driver, {EVERY_GPU: 1})
    driver.finish_evict("a")
    driver.run_until(1000.0)
    assert isinstance(driver.scheduler.state("a"), Asleep)
    asked = driver.arrive("a")
    driver.finish_wake("a")
    assert asked.admitted_at is not None, "it comes for whoever asks"
    driver.complete(asked)
    driver.run_until(1010.0)
    see(driver, {EVERY_GPU: 1})
    driver.finish_evict("a")
    see(driver, {})
    driver.finish_wake("a")


def test_what_the_operator_holds_on_the_gpu_stays():
    driver = play(ModelSpec("a", OFFLOAD))
    serving(driver, "a")
    driver.send(ModeChanged(manual=True))
    driver.run_until(10.0)
    see(driver, ALL_OF_IT)
    assert evictions(driver) == []
