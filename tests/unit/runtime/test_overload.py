"""When llmux says that more is asked of the GPUs than they can do."""

import pytest

from llmux.errors import Overloaded
from llmux.runtime.overload import EPISODE_SECONDS, Overload
from tests.support.scripted import model, scripted_runtime

TIMEOUT = 300.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def come(overload: Overload, clock: Clock, forecast: float, *, times: int, every: float) -> None:
    """Requests that are queued one after the other, with the same forecast."""
    for _ in range(times):
        clock.now += every
        overload.note("a", forecast, None)


def test_a_minute_of_requests_that_would_time_out_is_an_episode(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    overload = Overload(TIMEOUT, clock, lambda now: 1.4)
    come(overload, clock, 400.0, times=12, every=5.0)
    assert (overload.seconds, overload.episodes) == (None, 0)
    come(overload, clock, 400.0, times=20, every=5.0)
    assert overload.seconds == pytest.approx(155.0)
    assert overload.episodes == 1
    assert overload.offered_load == 1.4
    logged = capsys.readouterr().out
    assert logged.count("more is asked of the GPUs than they can do") == 1
    assert "1.4" in logged


def test_a_burst_is_none(clock: Clock) -> None:
    overload = Overload(TIMEOUT, clock, lambda now: 1.4)
    for _ in range(5):
        come(overload, clock, 400.0, times=50, every=1.0)
        clock.now += EPISODE_SECONDS
    assert overload.episodes == 0


def test_it_is_over_when_none_has_come_for_a_minute_and_the_next_one_counts_anew(clock: Clock) -> None:
    overload = Overload(TIMEOUT, clock, lambda now: 1.4)
    come(overload, clock, 400.0, times=20, every=5.0)
    come(overload, clock, 20.0, times=11, every=5.0)
    assert overload.seconds is not None
    come(overload, clock, 20.0, times=1, every=5.0)
    assert overload.seconds is None
    come(overload, clock, 400.0, times=13, every=5.0)
    assert overload.episodes == 2


def test_a_request_with_more_patience_says_nothing(clock: Clock) -> None:
    overload = Overload(TIMEOUT, clock, lambda now: 1.4)
    for _ in range(30):
        clock.now += 5.0
        overload.note("a", 400.0, 900.0)
        overload.note("a", None, None)
    assert overload.episodes == 0


async def test_what_is_refused_for_its_forecast_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_runtime(model("a")) as runtime:
        noted: list[float] = []
        overload = runtime.access.overload  # type: ignore[attr-defined]
        monkeypatch.setattr(overload, "late", lambda model, forecast: noted.append(forecast))
        runtime.engines["a"].wake_gate.clear()
        holder = runtime.ask("a")
        runtime.access._reject(holder.request, holder, Overloaded("a", 140.0, 60.0, batch_waits=True))  # type: ignore[attr-defined]
        assert noted == [140.0]
        runtime.engines["a"].wake_gate.set()
