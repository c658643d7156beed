from llmux.simulation.report.fate import Fate
from llmux.simulation.report.starvation import starvation


def waited(arrived_at: float, admitted_at: float) -> Fate:
    return Fate("a", arrived_at, admitted_at, admitted_at, admitted_at, True)


def test_nobody_who_is_admitted_at_once_starves() -> None:
    assert starvation([waited(1.0, 1.0), waited(2.0, 2.0)]) == 0.0
    assert starvation([]) == 0.0


def test_from_the_first_that_waits_to_the_next_admission() -> None:
    assert starvation([waited(1.0, 5.0), waited(2.0, 5.0), waited(4.0, 5.0)]) == 4.0


def test_a_queue_that_moves_does_not_starve() -> None:
    assert starvation([waited(0.0, 3.0), waited(1.0, 6.0), waited(2.0, 8.0)]) == 3.0


def test_giving_up_is_no_admission() -> None:
    lost = Fate("a", 0.0, None, None, 10.0, False)
    assert starvation([lost]) == 10.0
    assert starvation([lost, waited(1.0, 20.0)]) == 20.0
    assert starvation([lost, waited(12.0, 13.0)]) == 10.0
