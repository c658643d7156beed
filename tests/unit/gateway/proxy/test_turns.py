"""Putting work off for other connections' sake."""

from collections.abc import Callable

import pytest

from llmux.gateway.proxy import turns as module
from llmux.gateway.proxy.turns import Turns


def test_what_is_put_off_runs_in_order_and_later() -> None:
    soon: list[Callable[[], None]] = []
    ran: list[str] = []
    turns = Turns(soon.append)
    turns.put_off(lambda: ran.append("a"))
    turns.put_off(lambda: ran.append("b"))
    assert (len(soon), ran) == (1, [])
    soon.pop()()
    assert (soon, ran) == ([], ["a", "b"])


def test_an_iteration_ends_when_its_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TURN_SECONDS", 0.0)
    soon: list[Callable[[], None]] = []
    ran: list[int] = []
    turns = Turns(soon.append)
    for number in range(3):
        turns.put_off(lambda number=number: ran.append(number))  # type: ignore[misc]
    for expected in ([0], [0, 1], [0, 1, 2]):
        soon.pop()()
        assert ran == expected
    assert soon == []


def test_what_is_put_off_again_waits_for_the_next_iteration() -> None:
    soon: list[Callable[[], None]] = []
    ran: list[str] = []
    turns = Turns(soon.append)

    def again() -> None:
        ran.append("again")
        turns.put_off(again)

    turns.put_off(again)
    soon.pop()()
    assert (len(soon), ran) == (1, ["again"])


def test_work_that_raises_does_not_stop_the_rest() -> None:
    soon: list[Callable[[], None]] = []
    ran: list[str] = []
    turns = Turns(soon.append)
    turns.put_off(lambda: [][0])
    turns.put_off(lambda: ran.append("b"))
    with pytest.raises(IndexError):
        soon.pop()()
    soon.pop()()
    assert ran == ["b"]


def test_what_all_do_at_once_is_bounded_in_each_iteration() -> None:
    soon: list[Callable[[], None]] = []
    turns = Turns(soon.append)
    while turns.steps_left > 0:
        assert soon == []
        turns.spend(500)
    turns.spend(500)
    assert len(soon) == 1
    soon.pop()()
    assert turns.steps_left > 0 and soon == []
