"""Interactive requests go before batch ones, which are passed for so long and no longer."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llmux.core.eviction import STOP
from llmux.core.priority import Lanes, Priority
from llmux.core.settings import ModelSpec
from tests.support.core_truth import Place
from tests.support.playbook import play, serving

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE


def test_interactive_requests_go_first():
    lanes = Lanes(15.0)
    lanes.add(1, BATCH, 0.0)
    lanes.add(2, INTERACTIVE, 10.0)
    assert lanes.first() == 2
    lanes.remove(2, INTERACTIVE)
    assert lanes.first() == 1
    lanes.remove(1, BATCH)
    assert lanes.first() is None


def test_a_batch_request_is_not_passed_by_what_comes_too_late():
    lanes = Lanes(15.0)
    lanes.add(1, BATCH, 0.0)
    lanes.add(2, INTERACTIVE, 15.0)
    assert lanes.first() == 2
    lanes.remove(2, INTERACTIVE)
    lanes.add(3, INTERACTIVE, 15.1)
    assert lanes.first() == 1


def test_who_comes_back_stands_behind_the_older_ones():
    lanes = Lanes(15.0)
    for request in range(5):
        lanes.add(request, BATCH, float(request))
    lanes.remove(2, BATCH)
    lanes.add_again(2, BATCH, 2.0)
    assert list(lanes.members(BATCH)) == [0, 1, 2, 3, 4]


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 20)), max_size=40))
def test_nobody_is_passed_by_one_that_came_later_by_more_than_the_patience(steps):
    lanes, now, waiting = Lanes(15.0), 0.0, {}
    for number, (batch, pause) in enumerate(steps):
        now += pause
        waiting[number] = (BATCH if batch else INTERACTIVE, now)
        lanes.add(number, *waiting[number])
        if number % 2:
            first = lanes.first()
            priority, arrived_at = waiting.pop(first)
            lanes.remove(first, priority)
            assert all(at >= arrived_at - 15.0 for _, at in waiting.values())
            same = [at for other, at in waiting.values() if other is priority]
            assert all(at >= arrived_at for at in same)


def test_a_freed_place_is_for_the_interactive_request():
    driver = play(ModelSpec("a", STOP, max_in_flight=1))
    serving(driver, "a")
    busy = driver.arrive("a")
    batch = driver.arrive("a", priority=BATCH)
    interactive = driver.arrive("a")
    driver.complete(busy)
    assert (interactive.place, batch.place) == (Place.IN_FLIGHT, Place.WAITING)


def test_a_batch_request_is_admitted_though_interactive_ones_keep_coming():
    driver = play(ModelSpec("a", STOP, max_in_flight=1, max_wait_seconds=10.0))
    serving(driver, "a")
    busy = driver.arrive("a")
    batch = driver.arrive("a", priority=BATCH)
    for second in range(1, 40):
        driver.run_until(float(second))
        another = driver.arrive("a")
        if batch.place is not Place.WAITING:
            break
        driver.complete(busy)
        busy = next(request for request in driver.in_place(Place.IN_FLIGHT))
    assert another.arrived_at <= 13.0


def test_a_batch_request_brings_its_model_like_any_other():
    driver = play(ModelSpec("a", STOP), ModelSpec("b", STOP))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("b", priority=BATCH)
    assert driver.scheduler.switching() == ("a", "b")


def test_a_model_s_own_max_wait_makes_it_overdue_earlier():
    specs = [ModelSpec("a", STOP), ModelSpec("b", STOP), ModelSpec("c", STOP, max_wait_seconds=2.0)]
    driver = play(*specs)
    driver.arrive("a")
    driver.finish_wake("a")
    driver.arrive("b")
    driver.arrive("c")
    assert list(driver.scheduler._world.turns) == ["c", "b"]
    assert driver.scheduler.wait_bound(2.0, "c") == driver.scheduler.wait_bound(2.0, "b") - 13.0
    assert driver.scheduler.wait_bound(2.0) == driver.scheduler.wait_bound(2.0, "b")
