"""What a model needs, and what happens when its engine turns out to hold another amount of memory."""

from hypothesis import given
from hypothesis import strategies as st

from llmux.core.events import NeedMeasured
from llmux.core.eviction import STOP, Eviction
from llmux.core.identifiers import GpuId, InstanceId
from llmux.core.need import GROWTH_SHARE, Need, NeedSource, SaidNeed, SeenNeed, need_on
from llmux.core.settings import ModelSpec, Placement
from tests.support.core_driver import CoreDriver
from tests.support.playbook import performed, play, serving

GPU = GpuId("local", "0")
OFFLOAD = Eviction.parse("offload+keep_running")
amounts = st.integers(0, 100_000)


def sized(name: str, mib: int, eviction: Eviction = STOP) -> ModelSpec:
    return ModelSpec(name, eviction, placements=(Placement({GPU: mib}),))


def on_one_gpu(*specs: ModelSpec, mib: int = 100) -> CoreDriver:
    return play(*specs, capacity={GPU: mib})


def free(driver: CoreDriver) -> int:
    return driver.scheduler.gpu_memory()[GPU][1]


def test_what_is_said_counts_until_more_is_seen() -> None:
    declared = SaidNeed(NeedSource.DECLARED, mib=300)
    assert need_on(1000, declared, SeenNeed()) == Need(300, NeedSource.DECLARED)
    assert need_on(1000, declared, SeenNeed(300)) == Need(300, NeedSource.DECLARED)
    assert need_on(1000, declared, SeenNeed(400)) == Need(404, NeedSource.MEASURED, 300)


def test_a_share_is_one_of_each_gpu() -> None:
    share = SaidNeed(NeedSource.ARGUMENTS, share=0.5)
    assert [need_on(total, share, SeenNeed()).mib for total in (1000, 2000)] == [500, 1000]
    assert need_on(1000, share, SeenNeed(600)) == Need(606, NeedSource.MEASURED, 500)


def test_of_what_nothing_is_known_all_of_a_gpu_is_needed() -> None:
    assert need_on(1000, SaidNeed(), SeenNeed()) == Need(1000, NeedSource.UNKNOWN)
    assert need_on(1000, SaidNeed(), SeenNeed(400)) == Need(420, NeedSource.MEASURED)


@given(total_mib=st.integers(1, 100_000), said_mib=amounts, seen_mib=amounts)
def test_a_need_covers_what_was_seen_and_never_more_than_there_is(total_mib: int, said_mib: int, seen_mib: int) -> None:
    for said in (SaidNeed(), SaidNeed(NeedSource.DECLARED, mib=min(said_mib, total_mib))):
        need = need_on(total_mib, said, SeenNeed(seen_mib))
        assert min(seen_mib, total_mib) <= need.mib <= total_mib
        if need.source is NeedSource.MEASURED:
            assert need.mib <= seen_mib * (1 + GROWTH_SHARE)


def test_models_of_unknown_need_come_together_once_they_have_been_measured() -> None:
    """Each has the GPU to itself while it is started for the first time; then nothing has to leave any more."""
    driver = on_one_gpu(*(sized(name, 100) for name in "abc"))
    for name in "abc":
        waiting = driver.arrive(name)
        driver.run_until(driver.now + 30.0)
        for other in "abc":
            if driver.engines[other].pending and other != name:
                driver.finish_evict(other)
        driver.measure(name, 30)
        driver.finish_wake(name)
        driver.complete(waiting)
    began = len(driver.log)
    for name in "abc":
        driver.complete(driver.arrive(name))
        driver.run_until(driver.now + 30.0)
        if driver.engines[name].pending:
            driver.finish_wake(name)
    assert not [action for action in performed(driver, began) if action.startswith("evict")]
    assert free(driver) == 10


def test_what_a_model_gives_up_is_there_for_the_next_one_at_once() -> None:
    driver = on_one_gpu(sized("a", 100), sized("b", 60))
    first = driver.arrive("a")
    driver.arrive("b")
    assert performed(driver) == ["wake a#1"]
    driver.measure("a", 40)
    driver.finish_wake("a")
    assert performed(driver)[-1] == "wake b#1", "it fits beside a, which is still busy"
    driver.complete(first)


def test_what_a_model_holds_beyond_its_need_is_not_given_to_another() -> None:
    driver = on_one_gpu(sized("a", 40), sized("b", 40), sized("c", 20))
    serving(driver, "a")
    serving(driver, "b")
    driver.measure("a", 70)
    assert free(driver) == -10
    driver.arrive("c")
    driver.run_until(5.0)
    assert performed(driver)[-1].startswith("evict"), "there is no room for c, though it was thought that there is"


def test_a_model_that_grew_is_planned_with_as_it_is_when_it_comes_again() -> None:
    driver = on_one_gpu(sized("a", 40), sized("b", 40))
    serving(driver, "a")
    driver.measure("a", 70)
    driver.exit("a")
    driver.finish_evict("a")
    serving(driver, "b")
    driver.arrive("a")
    driver.run_until(5.0)
    assert performed(driver)[-1] == "evict b retain+stop"


def test_what_a_sleeper_was_seen_to_hold_counts() -> None:
    """90 of 100 do not fit beside 20 that remain, so the sleeper is stopped."""
    driver = on_one_gpu(sized("a", 60, OFFLOAD), sized("b", 90))
    serving(driver, "a")
    driver.arrive("b")
    driver.run_until(5.0)
    assert performed(driver)[-1] == f"evict a {OFFLOAD}"
    driver.engines["a"].places = (Placement({GPU: 60}, {OFFLOAD: {GPU: 20}}),)
    driver.send(NeedMeasured(InstanceId("a", 1), driver.engines["a"].places))
    driver.finish_evict("a")
    assert free(driver) == 80
    assert performed(driver)[-1] == "evict a retain+stop"
    driver.finish_evict("a")
    assert performed(driver)[-1] == "wake b#1"


def test_a_measurement_of_an_engine_that_is_no_more_is_ignored() -> None:
    driver = on_one_gpu(sized("a", 40))
    serving(driver, "a")
    driver.exit("a")
    driver.finish_evict("a")
    serving(driver, "a")
    driver.send(NeedMeasured(InstanceId("a", 1), (Placement({GPU: 90}),)))
    assert free(driver) == 60
