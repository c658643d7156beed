"""What is learnt of a model's requests."""

import pytest

from llmux.core.traffic import Traffic


def test_the_rate_follows_the_arrivals():
    traffic = Traffic()
    traffic.look(0.0)
    for second in range(1, 301):
        traffic.arrived += 2
        traffic.look(float(second))
    assert traffic.rate == pytest.approx(2.0, rel=0.02)
    traffic.look(600.0)
    assert traffic.rate < 0.1


def test_a_second_look_at_once_changes_nothing():
    traffic = Traffic()
    traffic.look(0.0)
    traffic.arrived = 5
    traffic.look(0.5)
    assert traffic.rate == 0.0
    traffic.look(10.0)
    assert traffic.rate > 0.0


def turn(traffic: Traffic, began_at: float, seconds: float, ended: int, in_flight: int = 4) -> None:
    traffic.arrived += in_flight
    traffic.turn_began(in_flight, 0, began_at)
    traffic.arrived += ended
    traffic.turn_ended(in_flight, 0, began_at + seconds)
    traffic.arrived -= in_flight


def test_the_service_time_is_what_was_in_flight_by_what_ended():
    traffic = Traffic()
    turn(traffic, 0.0, 10.0, 20)
    assert traffic.service_seconds == pytest.approx(2.0)


def test_a_shorter_service_time_is_believed_sooner_than_a_longer_one():
    shorter, longer = Traffic(), Traffic()
    for traffic, ended in ((shorter, 40), (longer, 10)):
        turn(traffic, 0.0, 10.0, 20)
        turn(traffic, 20.0, 10.0, ended)
    assert shorter.service_seconds == pytest.approx(2.0 - 0.4)
    assert longer.service_seconds == pytest.approx(2.0 + 0.2)


def test_a_turn_in_which_nothing_much_ended_says_nothing():
    traffic = Traffic()
    turn(traffic, 0.0, 10.0, 2)
    assert traffic.service_seconds is None
    traffic.turn_ended(1, 1, 30.0)
    assert traffic.service_seconds is None


def test_drains_are_averaged():
    traffic = Traffic()
    for _ in range(30):
        traffic.drained(8.0)
    assert traffic.drain_seconds == pytest.approx(8.0, rel=0.01)
