"""Forecasts of waits: right where nothing is left to chance, none where nobody can tell, and without any effect."""

import cProfile
import pstats
from collections.abc import Sequence

import pytest

from llmux.core.actions import Action
from llmux.core.events import Event, ModeChanged, RequestArrived, WakeDone
from llmux.core.forecast import Forecast, Truth, judge
from llmux.core.policies.adaptive import Adaptive
from llmux.core.request import Priority, Request
from llmux.core.request_queue import POSITION_MAX
from llmux.core.scheduler import Scheduler
from llmux.core.settings import ModelSpec
from tests.support.core_driver import CoreDriver
from tests.support.core_scenarios import OFFLOAD, random_walk
from tests.support.playbook import play, serving


def next_wait(driver: CoreDriver, model: str) -> float | None:
    """When the next request of a model's queue is expected to be admitted."""
    found = driver.scheduler.forecasts(driver.now).get(model)
    return None if found is None else found.admitted_in_seconds


def pause(driver: CoreDriver, seconds: float) -> None:
    driver.run_until(driver.now + seconds)


LEAVING, COMING = 2.0, 4.0


def switch(driver: CoreDriver, leaving: str, coming: str) -> None:
    """One idle model makes room for another, which answers a request."""
    pause(driver, 30.0)
    request = driver.arrive(coming)
    pause(driver, LEAVING)
    driver.finish_evict(leaving)
    pause(driver, COMING)
    driver.finish_wake(coming)
    driver.complete(request)


@pytest.fixture
def two() -> CoreDriver:
    """Two models that have followed each other, so that it is known how long they take to leave and to come."""
    driver = play(ModelSpec("a", OFFLOAD), ModelSpec("b", OFFLOAD), policy=Adaptive())
    serving(driver, "a")
    for _ in range(2):
        switch(driver, "a", "b")
        switch(driver, "b", "a")
    pause(driver, 30.0)
    return driver


def test_nobody_waits(two: CoreDriver):
    assert two.scheduler.forecasts(two.now) == {}


def test_a_switch_from_an_idle_model_takes_what_it_took(two: CoreDriver):
    began_at = two.now
    two.arrive("b")
    seen = []
    for elapsed in (0.0, 1.5, LEAVING, LEAVING + 1.5):
        two.run_until(began_at + elapsed)
        if elapsed == LEAVING:
            two.finish_evict("a")
        seen.append(next_wait(two, "b"))
    assert seen == [pytest.approx(LEAVING + COMING - elapsed) for elapsed in (0.0, 1.5, LEAVING, LEAVING + 1.5)]


def test_a_third_model_waits_for_two_switches_and_a_minimum_time():
    driver = play(*(ModelSpec(name, OFFLOAD) for name in "abc"), policy=Adaptive())
    serving(driver, "a")
    for leaving, coming in ("ab", "bc", "ca", "ab", "bc", "ca"):
        switch(driver, leaving, coming)
    pause(driver, 60.0)
    driver.arrive("b")
    driver.arrive("c")
    found = driver.scheduler.forecasts(driver.now)
    stay = driver.limits.min_active_seconds
    assert found["b"].admitted_in_seconds == pytest.approx(LEAVING + COMING)
    assert found["c"].admitted_in_seconds == pytest.approx(2 * (LEAVING + COMING) + stay, abs=0.1)


def test_what_takes_longer_than_expected_goes_on_for_a_tenth_of_that(two: CoreDriver):
    two.arrive("b")
    two.finish_evict("a")
    pause(two, COMING + 96.0)
    assert next_wait(two, "b") == pytest.approx((COMING + 96.0) / 10)


def test_the_operator_keeps_a_model_away(two: CoreDriver):
    two.send(ModeChanged(manual=True))
    two.arrive("a")
    assert next_wait(two, "a") is None


def test_a_full_engine_admits_as_its_requests_end():
    driver = play(ModelSpec("a", max_in_flight=4), policy=Adaptive())
    serving(driver, "a")
    for _ in range(8):
        request = driver.arrive("a")
        pause(driver, 5.0)
        driver.complete(request)
    for _ in range(4):
        driver.arrive("a")
    waiting = [driver.arrive("a") for _ in range(3)]
    scheduler, now = driver.scheduler, driver.now
    # Nine were in flight for 40 s in all, so that of four such one ends every 40 / 9 / 4 s.
    assert next_wait(driver, "a") == pytest.approx(40 / 36)
    last = scheduler.forecast(waiting[-1].record, now)
    assert last is not None
    assert last.admitted_in_seconds == pytest.approx(3 * 40 / 36)


def test_interactives_are_told_less_than_batch_requests():
    driver = play(ModelSpec("a", max_in_flight=1), policy=Adaptive())
    serving(driver, "a")
    for _ in range(4):
        request = driver.arrive("a")
        pause(driver, 5.0)
        driver.complete(request)
    driver.arrive("a")
    batch = [driver.arrive("a", priority=Priority.BATCH) for _ in range(5)]
    interactive = driver.arrive("a")
    forecast = driver.scheduler.forecast
    first, last = forecast(interactive.record, driver.now), forecast(batch[-1].record, driver.now)
    assert first is not None
    assert last is not None
    assert last.admitted_in_seconds > 4 * first.admitted_in_seconds > 0
    assert first.first_token_in_seconds >= first.admitted_in_seconds


def test_who_has_waited_for_a_while_is_told_the_position_and_what_is_left(two: CoreDriver):
    first, batch, last = two.arrive("b"), two.arrive("b", priority=Priority.BATCH), two.arrive("b")
    pause(two, 1.5)
    outlook = two.scheduler.outlook
    found = [outlook(request.record, two.now) for request in (first, last, batch)]
    assert [one and one.position for one in found] == [1, 2, 3]
    assert found[0] is not None
    assert found[0].seconds == pytest.approx(LEAVING + COMING - 1.5)
    two.finish_evict("a")
    pause(two, COMING)
    two.finish_wake("b")
    assert outlook(first.record, two.now) is None


def test_who_is_far_back_is_told_nothing(two: CoreDriver):
    requests = [two.arrive("b") for _ in range(POSITION_MAX + 1)]
    outlook = two.scheduler.outlook
    last = outlook(requests[-2].record, two.now)
    assert last is not None
    assert last.position == POSITION_MAX
    assert outlook(requests[-1].record, two.now) is None


@pytest.mark.parametrize("seed", range(40))
def test_forecasts_change_nothing_and_are_never_negative(seed: int, monkeypatch: pytest.MonkeyPatch):
    handle = Scheduler.handle
    runs: list[list[str]] = []
    forecasts: list[Forecast] = []

    def recorded(scheduler: Scheduler, event: Event, now: float) -> Sequence[Action]:
        actions = handle(scheduler, event, now)
        runs[-1].append(repr(actions))
        if len(runs) == 2:
            forecasts.extend(scheduler.forecasts(now).values())
        return actions

    monkeypatch.setattr(Scheduler, "handle", recorded)
    for _ in range(2):
        runs.append([])
        random_walk(seed)
    assert runs[0] == runs[1]
    assert all(0 <= one.admitted_in_seconds <= one.first_token_in_seconds for one in forecasts)


def test_the_work_for_a_forecast_is_bounded_however_many_models_wait():
    calls = {}
    for count in (64, 1000):
        scheduler = Scheduler([ModelSpec(f"m{number}") for number in range(count)], Adaptive())
        requests = [Request(number, f"m{number}") for number in range(count)]
        for request in requests:
            scheduler.handle(RequestArrived(request), 1.0)
            scheduler.handle(WakeDone(scheduler.model("m0").instance), 1.0)
        profile = cProfile.Profile()
        profile.runcall(scheduler.forecast, requests[-1], 2.0)
        calls[count] = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
    assert calls[1000] < 1.1 * calls[64] < 150_000


@pytest.mark.parametrize(
    ("forecast", "waited", "truth"),
    [
        (12.0, 10.0, Truth.RIGHT),
        (12.1, 10.0, Truth.TOO_LONG),
        (7.9, 10.0, Truth.TOO_SHORT),
        (1.5, 0.6, Truth.RIGHT),
        (1.7, 0.6, Truth.TOO_LONG),
    ],
)
def test_a_forecast_is_right_within_a_fifth_or_a_second(forecast: float, waited: float, truth: Truth):
    assert judge(forecast, waited) is truth
