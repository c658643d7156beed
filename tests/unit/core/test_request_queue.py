"""Interactive requests go before batch ones, which are overtaken for a bounded time only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmux.core.eviction import STOP
from llmux.core.request import Priority, Request
from llmux.core.request_queue import RequestQueue
from llmux.core.settings import ModelSpec
from tests.support.core_truth import Place
from tests.support.playbook import play, serving

BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE


def request(number: int, priority: Priority, arrived_at: float) -> Request:
    made = Request(number, "a", priority=priority)
    made.arrived_at = arrived_at
    return made


def test_interactive_requests_go_first():
    queue = RequestQueue(15.0)
    batch, interactive = request(1, BATCH, 0.0), request(2, INTERACTIVE, 10.0)
    queue.append(batch)
    queue.append(interactive)
    assert queue.next() is interactive
    queue.remove(interactive)
    assert queue.next() is batch
    queue.remove(batch)
    assert queue.next() is None


def test_a_batch_request_is_not_overtaken_by_what_comes_too_late():
    queue = RequestQueue(15.0)
    batch, within, too_late = request(1, BATCH, 0.0), request(2, INTERACTIVE, 15.0), request(3, INTERACTIVE, 15.1)
    queue.append(batch)
    queue.append(within)
    assert queue.next() is within
    queue.remove(within)
    queue.append(too_late)
    assert queue.next() is batch


def test_a_returned_request_stands_behind_the_older_ones():
    queue = RequestQueue(15.0)
    requests = [request(number, BATCH, float(number)) for number in range(5)]
    for each in requests:
        queue.append(each)
    queue.remove(requests[2])
    queue.reinsert(requests[2])
    assert queue.line(BATCH) == requests


def test_the_queue_knows_its_oldest_and_its_members():
    queue = RequestQueue(15.0)
    assert queue.oldest_arrived_at is None
    old, young = request(1, BATCH, 3.0), request(2, INTERACTIVE, 4.0)
    queue.append(old)
    assert (len(queue), old in queue, young in queue) == (1, True, False)
    queue.append(young)
    assert queue.oldest_arrived_at == 3.0
    assert queue.by_arrival() == [old, young]
    with pytest.raises(KeyError):
        queue.remove(request(1, BATCH, 3.0))


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 20)), max_size=40))
def test_no_request_is_overtaken_by_one_that_arrived_more_than_max_wait_later(steps):
    queue, now, waiting = RequestQueue(15.0), 0.0, set()
    for number, (batch, pause) in enumerate(steps):
        now += pause
        arrived = request(number, BATCH if batch else INTERACTIVE, now)
        waiting.add(arrived)
        queue.append(arrived)
        if number % 2:
            first = queue.next()
            waiting.remove(first)
            queue.remove(first)
            assert all(other.arrived_at >= first.arrived_at - 15.0 for other in waiting)
            same = [other.arrived_at for other in waiting if other.priority is first.priority]
            assert all(at >= first.arrived_at for at in same)


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
    assert list(driver.scheduler._world.candidates) == ["c", "b"]
    assert driver.scheduler.wait_bound(2.0, "c") == driver.scheduler.wait_bound(2.0, "b") - 13.0
    assert driver.scheduler.wait_bound(2.0) == driver.scheduler.wait_bound(2.0, "b")
