"""Threads that work in pieces, and whose turn it is."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmux.gateway import pieces
from llmux.gateway.pieces import TakingTurns

LIMIT_SECONDS = 20


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces.time, "sleep", lambda _seconds: None)


def run_together(turns: TakingTurns, *works: Callable[[], None]) -> None:
    """Start all of them while none can begin, in their order."""
    begins = threading.Event()
    with ThreadPoolExecutor(len(works) + 1) as threads:
        first = threads.submit(turns.run, begins.wait, LIMIT_SECONDS)
        while turns._free:
            pass
        others = []
        for number, work in enumerate(works, 1):
            others.append(threads.submit(turns.run, work))
            while len(turns._waiting) < number:
                pass
        begins.set()
        for future in (first, *others):
            future.result(LIMIT_SECONDS)


def test_one_piece_each_in_turn() -> None:
    log = []

    def work(name: str, count: int) -> Callable[[], None]:
        def step() -> None:
            for _ in range(count):
                log.append(name)
                pieces.pause()

        return step

    run_together(TakingTurns(1), work("a", 1000), work("b", 3), work("c", 1000))
    assert log[:9] == ["a", "b", "c"] * 3
    assert log.count("a") == log.count("c") == 1000


def test_only_so_many_work_at_a_time() -> None:
    turns = TakingTurns(2)
    working = most = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal working, most
        for _ in range(200):
            with lock:
                working += 1
                most = max(most, working)
            with lock:
                working -= 1
            pieces.pause()

    with ThreadPoolExecutor(6) as threads:
        for future in [threads.submit(turns.run, work) for _ in range(6)]:
            future.result(LIMIT_SECONDS)
    assert most <= 2
    assert turns._free == 2


def test_an_error_ends_a_turn() -> None:
    turns = TakingTurns(1)
    with pytest.raises(ZeroDivisionError):
        turns.run(lambda: 1 // 0)
    assert turns.run(lambda: 7) == 7
    pieces.pause()  # Without turns it is a pause only.
