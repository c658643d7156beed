"""Plans that are kept between decisions: what makes them out of date, and that they do not grow without bound."""

import pytest

from llmux.core.clock import Clock
from llmux.core.events import EvictionChanged
from llmux.core.eviction import STOP
from llmux.core.identifiers import GpuId
from llmux.core.known_plans import NEEDS_MAX, KnownPlans
from llmux.core.model import NUMBERS_MAX, Model, NeedNumbers
from llmux.core.settings import Limits, ModelSpec, Placement
from llmux.core.vacating import Room
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD
from tests.support.playbook import play, serving

ONE, TWO = GpuId("local", "0"), GpuId("local", "1")
PLACES = (Placement({ONE: 7}), Placement({TWO: 7}))


def fleet() -> CoreDriver:
    """Two models that serve, each on a GPU of its own, and one that would need either."""
    limits = Limits(min_active_seconds=5.0)
    driver = play(*(ModelSpec(name, placements=PLACES) for name in "abc"), limits=limits, capacity={ONE: 10, TWO: 10})
    serving(driver, "a")
    driver.run_until(3.0)
    serving(driver, "b")
    driver.run_until(10.0)
    return driver


def victims(driver: CoreDriver) -> tuple[str, ...]:
    """Who would leave for the third model now."""
    world = driver.scheduler._world
    world.clock.now = driver.now
    found = Room(world).best_open(world.models["c"])
    assert found is not None
    return found.plan.victims


def known(driver: CoreDriver) -> list[bool]:
    """Of each place of the third model, whether what is known of it still holds."""
    world = driver.scheduler._world
    model, kept = world.models["c"], world.gpus.known_plans
    plans = kept.of(model)
    return [
        plan is not None and plan.changes == sum(kept.changes[gpu] for gpu in place.awake)
        for plan, place in zip(plans, model.placements, strict=True)
    ]


def test_a_place_whose_model_is_in_use_becomes_dearer_though_nothing_is_found_anew():
    driver = fleet()
    assert victims(driver) == ("a",)
    request = driver.arrive("a")
    assert known(driver) == [True, True]
    assert victims(driver) == ("b",)
    driver.complete(request)
    assert known(driver) == [True, True]
    assert victims(driver) == ("b",), "it has been unused for longer"


def test_only_the_places_that_an_event_has_changed_are_looked_at_anew():
    driver = fleet()
    victims(driver)
    driver.exit("b")
    assert known(driver) == [True, False]


def test_a_model_that_has_come_can_leave_again():
    driver = play(*(ModelSpec(name, placements=PLACES[:1]) for name in "ac"), capacity={ONE: 10, TWO: 10})
    world = driver.scheduler._world
    driver.arrive("a")
    assert Room(world, ()).best_open(world.models["c"]) is None
    driver.finish_wake("a")
    assert victims(driver) == ("a",)


def test_how_a_model_leaves_is_looked_at_anew_when_the_operator_changes_it():
    driver = fleet()
    victims(driver)
    driver.send(EvictionChanged("a", OFFLOAD))
    assert known(driver) == [False, True]
    driver.send(EvictionChanged("a", STOP))
    assert victims(driver) == ("a",)


def test_a_gpu_that_somebody_has_claimed_is_not_answered_for_by_what_is_known():
    small = ModelSpec("a", placements=(Placement({ONE: 3}),))
    driver = play(small, *(ModelSpec(name, placements=(Placement({ONE: 4}),)) for name in "cd"), capacity={ONE: 10})
    serving(driver, "a")
    world = driver.scheduler._world
    world.clock.now = driver.now
    room = Room(world)
    first = room.best_open(world.models["c"])
    assert first is not None
    assert first.plan.victims == (), "it fits beside the one that is there"
    room.claim(world.models["c"], first.plan)
    second = room.best_open(world.models["d"])
    assert second is not None
    assert second.plan.victims == ("a",), "three do not fit"


@pytest.mark.parametrize("needs", [NEEDS_MAX + 1, 3 * NEEDS_MAX])
def test_no_more_needs_are_kept_than_a_fleet_of_models_that_are_alike_has(needs: int):
    kept, numbers = KnownPlans({ONE: 10}), NeedNumbers()
    for size in range(needs):
        kept.of(Model(ModelSpec("a", placements=(Placement({ONE: size}),)), 60.0, Clock(), numbers))
        assert len(kept._plans) <= NEEDS_MAX


def test_equal_needs_have_one_number_as_long_as_there_are_not_too_many():
    numbers = NeedNumbers()
    first = numbers.of((((ONE, 7),),), starts_cold=True)
    assert numbers.of((((ONE, 7),),), starts_cold=True) == first
    seen = {first, numbers.of((((ONE, 7),),), starts_cold=False)}
    for size in range(NUMBERS_MAX):
        seen.add(numbers.of((((ONE, 100 + size),),), starts_cold=True))
        assert len(numbers._numbers) <= NUMBERS_MAX
    seen.add(numbers.of((((ONE, 7),),), starts_cold=True))
    assert len(seen) == NUMBERS_MAX + 3, "no number is given twice"
