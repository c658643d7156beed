import pytest

from llmux.simulation.replay.client import Heard
from llmux.simulation.replay.run import Replayed, covered
from llmux.simulation.replay.switches import SwitchCounts
from llmux.simulation.workload.call import TracedCall

CALL = TracedCall(0.0, "a", 1, 1)


def test_time_that_is_covered_twice_counts_once() -> None:
    assert covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.6), (None, 9.0), (8.0, None)]) == 4.0
    assert covered([]) == 0.0


def test_the_figures_are_those_of_a_simulation() -> None:
    counts = SwitchCounts(draining_seconds=1.0, leaving_seconds=0.5, coming_seconds=1.5)
    counts.by_model["a"] = 2
    heard = [
        Heard(CALL, 100.0, 3.0, 104.0, 106.0),
        Heard(CALL, 101.0, 2.0, 104.5, 107.0),
        Heard(CALL, 102.0, None, None, 103.0, "429: full"),
    ]
    replayed = Replayed(heard, counts, 10.0, 0.0, interrupted=False, started_at=100.0)
    run = replayed.figures("replay")
    assert (run.total.requests, run.total.unserved, run.total.switches) == (3, 1, 2)
    assert run.total.wait.max == 3.0
    assert run.total.ttft.max == 4.0
    assert run.total.share is not None
    assert run.total.share.switching == pytest.approx(0.2)
    assert run.total.share.draining == pytest.approx(0.1)
    assert run.total.share.serving == pytest.approx(0.3)
    assert run.total.share.idle == pytest.approx(0.4)
    assert run.models["a"].share is None
    assert replayed.problems() == [("429: full", 1)]


def test_nothing_at_all() -> None:
    run = Replayed([], SwitchCounts(), 0.0, 0.0, interrupted=True, started_at=0.0).figures("replay")
    assert run.total.requests == 0
    assert run.total.starvation == 0.0
