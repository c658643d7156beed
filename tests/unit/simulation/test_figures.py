from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from llmux.core.target import Target
from llmux.simulation.figures import Distribution, Figures, percentile, run_figures, starvation
from llmux.simulation.on_time import Progress
from llmux.simulation.residency import Shares
from llmux.simulation.traffic import Ending, RequestOutcome, TrafficRequest

SHARE = Shares(0.1, 0.2, 0.3, 0.4)
REQUEST = TrafficRequest(0.0, "a", 1, 1)
SERVED = RequestOutcome(REQUEST, 10.0, 12.0, 13.0, 20.0, Ending.ANSWERED)
LOST = RequestOutcome(REQUEST, 10.0, ended_at=310.0)


def figures_of(outcomes: Sequence[RequestOutcome], switches: int = 0) -> Figures:
    return run_figures("run", outcomes, Counter(a=switches), lambda model: SHARE).total


def waited(arrived_at: float, admitted_at: float) -> RequestOutcome:
    return RequestOutcome(REQUEST, arrived_at, admitted_at, admitted_at, admitted_at, Ending.ANSWERED)


def test_a_distribution() -> None:
    assert Distribution.of([4.0, 1.0, 3.0, 2.0]) == Distribution(2.5, 2.0, 4.0, 4.0, 4.0)
    assert Distribution.of([]) == Distribution(None, None, None, None, None)


def test_durations_are_those_of_served_requests_from_their_arrival() -> None:
    figures = figures_of([SERVED, LOST], 3)
    # The lost request waits from 10 to 310, and the other one is admitted at 12.
    assert (figures.requests, figures.unserved, figures.switches, figures.starvation) == (2, 1, 3, 298.0)
    assert figures.share == SHARE
    assert (figures.wait.max, figures.ttft.max, figures.latency.max) == (2.0, 3.0, 10.0)


def test_unserved_requests_have_no_first_token_in_time() -> None:
    late = replace(SERVED, first_token_at=18.0)
    assert figures_of([SERVED, late, LOST, LOST]).within == {5: 0.25, 10: 0.5, 30: 0.5}


def test_what_is_on_time_counts_every_token_those_of_unserved_requests_too() -> None:
    long = replace(REQUEST, output_tokens=11)
    prompt = RequestOutcome(long, 0.0, 0.0, 9.5, 11.9, Ending.ANSWERED)
    paused = replace(prompt, progress=(Progress(10.4, 6), Progress(11.9, 7)))
    stalled = replace(prompt, progress=(Progress(10.4, 6), Progress(20.0, 7)), ended_at=20.4)
    lost = RequestOutcome(long, 0.0, ended_at=300.0)
    figures = figures_of([prompt, paused, stalled, lost])
    # At 5 tokens a second from 10 s on, the seventh is due at 11.2 s and the eleventh at 12 s.
    assert figures.requests_on_time == 1 / 4
    assert figures.tokens_on_time == (11 + 7 + 6) / 44
    # A reader who began at 9.5 s has read six tokens at 10.7 s.
    assert figures.stall.max == pytest.approx(20.0 - 10.7)


def test_a_model_has_a_target_of_its_own() -> None:
    outcomes = [SERVED, replace(SERVED, request=replace(REQUEST, model="b"))]
    strict = {"a": Target(2.9), "b": Target(3.0)}
    run = run_figures("run", outcomes, Counter(), lambda model: None, strict.__getitem__)
    assert {name: figures.requests_on_time for name, figures in run.models.items()} == {"a": 0.0, "b": 1.0}


def test_no_requests() -> None:
    figures = figures_of([])
    assert figures.ttft.mean is None
    assert figures.within == {5: pytest.approx(0), 10: pytest.approx(0), 30: pytest.approx(0)}


def test_each_model_has_figures_of_its_own() -> None:
    other = replace(SERVED, request=replace(REQUEST, model="b"), first_token_at=19.0)
    run = run_figures("run", [SERVED, other], Counter(a=1, b=2), lambda model: None if model else SHARE)
    assert {name: figures.ttft.max for name, figures in run.models.items()} == {"a": 3.0, "b": 9.0}
    assert (run.models["b"].switches, run.total.switches) == (2, 3)
    assert (run.models["b"].share, run.total.share) == (None, SHARE)


def test_requests_admitted_at_once_do_not_starve() -> None:
    assert starvation([waited(1.0, 1.0), waited(2.0, 2.0)]) == 0.0
    assert starvation([]) == 0.0


def test_starvation_lasts_from_the_first_waiting_request_to_the_next_admission() -> None:
    assert starvation([waited(1.0, 5.0), waited(2.0, 5.0), waited(4.0, 5.0)]) == 4.0


def test_a_queue_that_moves_does_not_starve() -> None:
    assert starvation([waited(0.0, 3.0), waited(1.0, 6.0), waited(2.0, 8.0)]) == 3.0


def test_giving_up_is_not_an_admission() -> None:
    lost = RequestOutcome(REQUEST, 0.0, ended_at=10.0)
    assert starvation([lost]) == 10.0
    assert starvation([lost, waited(1.0, 20.0)]) == 20.0
    assert starvation([lost, waited(12.0, 13.0)]) == 10.0


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([7.0], 99, 7.0), ([1.0, 2.0, 3.0, 4.0], 50, 2.0), (list(map(float, range(1, 101))), 99, 99.0)],
)
def test_percentiles_are_of_the_nearest_rank(values: list[float], percent: float, expected: float | None) -> None:
    assert percentile(values, percent) == expected
