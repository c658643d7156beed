"""Requests: into the queue, out to the engine, back again, or away."""

from dataclasses import replace

import pytest

from llmux.core.events import RequestDone, RequestGone
from llmux.core.request import Request
from llmux.core.settings import ModelSpec
from llmux.core.states import Draining, Serving
from llmux.errors import EngineDied, ModelNotLoaded, QueueFull, QueueTimeout, StartProgress
from tests.support.core_scenarios import OFFLOAD
from tests.support.core_truth import Place
from tests.support.playbook import LIMITS, performed, play, serving


def test_a_request_for_a_cold_model_waits_for_its_wake_and_one_for_a_serving_model_does_not():
    driver = play(ModelSpec("a"), short_cuts=False)
    first = driver.arrive("a")
    assert performed(driver) == ["wake a#1"]
    assert first.place is Place.WAITING
    driver.finish_wake("a")
    assert driver.arrive("a").place is Place.IN_FLIGHT


def test_what_exceeds_max_in_flight_waits_in_order_of_arrival():
    driver = play(ModelSpec("a", max_in_flight=2))
    requests = [driver.arrive("a") for _ in range(5)]
    driver.finish_wake("a")
    assert [request.place is Place.IN_FLIGHT for request in requests] == [True, True, False, False, False]
    driver.complete(requests[1])
    assert requests[2].place is Place.IN_FLIGHT
    driver.leave(requests[3])
    driver.complete(requests[0])
    assert requests[4].place is Place.IN_FLIGHT


def test_a_request_that_may_not_wake_is_served_or_refused_at_once():
    driver = play(ModelSpec("a", max_in_flight=1), short_cuts=False)
    assert isinstance(driver.arrive("a", may_wake=False).error, ModelNotLoaded)
    serving(driver, "a")
    assert driver.arrive("a", may_wake=False).place is Place.IN_FLIGHT
    assert isinstance(driver.arrive("a", may_wake=False).error, ModelNotLoaded)


def test_the_queue_is_bounded_in_requests_and_in_bytes():
    driver = play(ModelSpec("a"), limits=replace(LIMITS, queue_limit_requests=3, queue_limit_bytes=100))
    driver.arrive("a", 60)
    refused = driver.arrive("a", 41)
    assert isinstance(refused.error, QueueFull)
    assert "bytes" in str(refused.error)
    fitting = driver.arrive("a", 40)
    driver.arrive("a")
    refused = driver.arrive("a")
    assert isinstance(refused.error, QueueFull)
    assert "requests 3" in str(refused.error)
    driver.leave(fitting)
    assert driver.arrive("a", 40).error is None
    driver.finish_wake("a")
    assert driver.arrive("a", 10_000).place is Place.IN_FLIGHT


def test_a_request_that_waits_too_long_is_refused_and_is_no_demand_any_more():
    driver = play(ModelSpec("a"), ModelSpec("b"), limits=replace(LIMITS, request_timeout_seconds=10.0))
    serving(driver, "a")
    busy = driver.arrive("a")
    driver.run_until(1.0)
    late = driver.arrive("b")
    driver.run_until(6.0)
    assert isinstance(driver.scheduler.state("a"), Draining)
    driver.run_until(11.0)
    assert isinstance(late.error, QueueTimeout)
    assert late.error.waited_seconds == 10.0
    assert isinstance(driver.scheduler.state("a"), Serving), "the switch is called off"
    driver.complete(busy)


def test_a_time_out_during_a_start_says_how_far_the_start_is():
    driver = play(ModelSpec("a"), ModelSpec("b"), limits=replace(LIMITS, request_timeout_seconds=10.0))
    first = driver.arrive("a")
    asked_without_waking = driver.arrive("a", may_wake=False)
    assert isinstance(asked_without_waking.error, ModelNotLoaded)
    assert asked_without_waking.error.start == StartProgress(0.0)
    driver.run_until(10.0)
    assert isinstance(first.error, QueueTimeout)
    assert first.error.start == StartProgress(10.0)
    assert str(first.error).endswith("request_timeout_seconds; it is still starting, 10 s so far")
    driver.run_until(25.0)
    driver.finish_wake("a")
    driver.run_until(31.0)
    elsewhere = driver.arrive("b")
    driver.finish_evict("a")
    driver.run_until(41.0)
    assert isinstance(elsewhere.error, QueueTimeout)
    driver.finish_wake("b")
    again = driver.arrive("a")
    driver.run_until(46.0)
    driver.finish_evict("b")
    driver.run_until(51.0)
    assert isinstance(again.error, QueueTimeout)
    assert again.error.start == StartProgress(5.0, left_seconds=20.0)
    assert "5 s so far, about 20 s to go" in str(again.error)


def test_the_default_time_out_does_not_cover_the_start_of_the_requests_own_model():
    limits = replace(LIMITS, request_timeout_seconds=10.0, request_timeout_covers_starts=False)
    driver = play(ModelSpec("a"), ModelSpec("b"), limits=limits)
    own, elsewhere = driver.arrive("a"), driver.arrive("b")
    driver.run_until(9.0)
    later = driver.arrive("a")
    driver.run_until(95.0)
    assert isinstance(elsewhere.error, QueueTimeout)
    assert (own.place, later.place) == (Place.WAITING, Place.WAITING)
    driver.finish_wake("a")
    assert (own.place, later.place) == (Place.IN_FLIGHT, Place.IN_FLIGHT)


def test_what_a_start_leaves_in_the_queue_times_out_after_it():
    limits = replace(LIMITS, request_timeout_seconds=10.0, request_timeout_covers_starts=False)
    driver = play(ModelSpec("a", max_in_flight=1), limits=limits)
    driver.arrive("a")
    left = driver.arrive("a")
    driver.run_until(95.0)
    driver.finish_wake("a")
    assert left.place is Place.WAITING
    driver.run_until(105.0)
    assert isinstance(left.error, QueueTimeout)
    assert left.error.start is None


def test_when_all_waiters_leave_during_a_drain_the_next_candidate_is_chosen():
    driver = play(ModelSpec("a"), ModelSpec("b"), ModelSpec("c"))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("a")
    first, second = driver.arrive("b"), driver.arrive("c")
    assert driver.scheduler.switching() == ("a", "b")
    driver.leave(first)
    assert driver.scheduler.switching() == ("a", "c")
    driver.leave(second)
    assert driver.scheduler.switching() is None
    assert driver.arrive("a").place is Place.IN_FLIGHT


def test_calling_off_a_switch_admits_what_was_queued_for_the_victim():
    driver = play(ModelSpec("a"), ModelSpec("b"))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.arrive("a")
    wanted = driver.arrive("b")
    held_back = driver.arrive("a")
    assert held_back.place is Place.WAITING
    driver.leave(wanted)
    assert held_back.place is Place.IN_FLIGHT


def test_an_unwanted_switch_is_dropped_though_its_victim_is_leaving():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    serving(driver, "a")
    driver.run_until(6.0)
    driver.leave(driver.arrive("b"))
    driver.finish_evict("a")
    assert not driver.pending
    assert driver.scheduler.active_model() is None


def test_a_wake_goes_on_though_every_waiter_has_left():
    driver = play(ModelSpec("a"))
    driver.leave(driver.arrive("a"))
    driver.finish_wake("a")
    assert isinstance(driver.scheduler.state("a"), Serving)


def test_returned_requests_go_to_the_front_in_order_of_arrival():
    driver = play(ModelSpec("a", max_in_flight=4), short_cuts=False)
    requests = []
    for _ in range(6):
        driver.run_until(driver.now + 1.0)
        requests.append(driver.arrive("a"))
    driver.finish_wake("a")
    driver.exit("a")
    returned = [request for request in requests[:4] if not request.error]
    assert len(returned) >= 2
    expected = [request.record for request in (*returned, *requests[4:])]
    assert driver.scheduler.model("a").queue.by_arrival() == expected


def test_a_returned_request_goes_out_again_at_once_where_the_engine_lives():
    driver = play(ModelSpec("a", max_in_flight=1))
    first, second = driver.arrive("a"), driver.arrive("a")
    driver.finish_wake("a")
    driver.give_back(first)
    assert first.place is Place.IN_FLIGHT
    driver.give_back(first, "connection lost")
    assert isinstance(first.error, EngineDied)
    assert second.place is Place.IN_FLIGHT, "the freed place is used"


def test_an_end_that_is_known_already_changes_nothing():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    before = driver.scheduler.model("a").idle_since
    driver.run_until(3.0)
    driver.send(RequestDone(Request(12345, "a")))
    driver.send(RequestGone(Request(12345, "a")))
    assert driver.scheduler.model("a").idle_since == before


def test_clients_that_come_and_go_leave_nothing_behind():
    driver = play(ModelSpec("a"))
    for _ in range(2_500):
        driver.leave(driver.arrive("a"))
    world = driver.scheduler._world
    assert world.queued_requests == 0
    assert len(world.deadlines) <= 1_025


def test_a_request_carries_the_switch_that_it_waited_for_and_no_earlier_one():
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b"))
    driver.run_until(5.0)
    first = driver.arrive("a")
    driver.run_until(15.0)
    driver.finish_wake("a")
    assert (first.record.queue_seconds, first.record.switch_seconds) == (10.0, 10.0)
    driver.run_until(15.1)
    second = driver.arrive("a")
    assert (second.record.queue_seconds, second.record.switch_seconds) == (0.0, None)
    driver.complete(first), driver.complete(second)
    third = driver.arrive("b")
    driver.run_until(21.0)
    driver.finish_evict("a")
    driver.run_until(25.0)
    driver.finish_wake("b")
    assert third.record.queue_seconds == pytest.approx(9.9)
    assert third.record.switch_seconds == pytest.approx(9.9)


def test_a_request_counts_its_attempts_and_keeps_its_arrival():
    driver = play(ModelSpec("a"))
    serving(driver, "a")
    driver.run_until(3.0)
    request = driver.arrive("a")
    assert (request.record.attempts, request.record.instance) == (1, driver.scheduler.model("a").instance)
    driver.run_until(4.0)
    driver.give_back(request)
    assert (request.record.attempts, request.record.arrived_at) == (2, 3.0)
