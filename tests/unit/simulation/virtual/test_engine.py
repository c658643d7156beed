import math
import random
from itertools import pairwise

import pytest

from llmux.simulation.virtual.engine import EngineSpeed, VirtualEngine

SPEED = EngineSpeed(prefill=1000.0, decode_alone=40.0, decode_full=20.0)


def drive(engine: VirtualEngine, until: float = math.inf) -> list[tuple[float, int, bool]]:
    """The first and last tokens up to a time."""
    seen = []
    while engine.next_at <= until and engine.next_at < math.inf:
        at = engine.next_at
        seen.append((at, *engine.advance()))
    return seen


def test_a_request_is_prefilled_and_then_decoded() -> None:
    engine = VirtualEngine(SPEED, 8)
    engine.admit(1, 500, 41, 10.0)
    assert drive(engine) == [(10.5, 1, False), (pytest.approx(11.5), 1, True)]
    assert engine.is_idle


def test_an_answer_of_one_token_ends_with_its_first() -> None:
    engine = VirtualEngine(SPEED, 8)
    engine.admit(1, 500, 1, 0.0)
    assert drive(engine) == [(0.5, 1, True)]
    assert engine.is_idle


def test_prompts_are_prefilled_one_after_the_other() -> None:
    engine = VirtualEngine(SPEED, 8)
    engine.admit(1, 1000, 1, 0.0)
    engine.admit(2, 500, 1, 0.25)
    assert drive(engine) == [(1.0, 1, True), (1.5, 2, True)]


def test_prefills_and_decodes_fill_the_batch() -> None:
    engine = VirtualEngine(SPEED, 2)
    engine.admit(1, 0, 41, 0.0)
    assert engine.has_slot
    engine.advance()
    engine.admit(2, 500, 1, 0.0)
    assert not engine.has_slot
    engine.advance()
    assert engine.has_slot


def test_a_full_batch_decodes_at_half_the_rate() -> None:
    engine = VirtualEngine(SPEED, 2)
    engine.admit(1, 0, 41, 0.0)
    engine.admit(2, 0, 41, 0.0)
    last = [(at, request) for at, request, ended in drive(engine) if ended]
    assert last == [(pytest.approx(2.0), 1), (pytest.approx(2.0), 2)]


def test_the_rate_falls_linearly_to_the_batch_limit() -> None:
    assert SPEED.decode_rates(5) == [40.0, 40.0, 35.0, 30.0, 25.0, 20.0]
    assert SPEED.decode_rates(1) == [40.0, 40.0]


def test_the_shared_clock_gives_what_stepping_through_time_gives() -> None:
    chance = random.Random(3)
    limit = 6
    rates = SPEED.decode_rates(limit)
    engine = VirtualEngine(SPEED, limit)
    wanted = {number: chance.randint(2, 60) for number in range(40)}
    waiting, open_requests, now = list(wanted), 0, 0.0
    began, ended = {}, {}
    while waiting or open_requests:
        while waiting and open_requests < limit:
            engine.admit(waiting[0], chance.randint(0, 300), wanted[waiting.pop(0)], now)
            open_requests += 1
        now = engine.next_at
        request, is_end = engine.advance()
        (ended if is_end else began)[request] = now
        open_requests -= is_end
    moments = sorted({*began.values(), *ended.values()})
    written = dict.fromkeys(wanted, 1.0)
    for begin, end in pairwise(moments):
        writing = [number for number in wanted if began[number] <= begin and ended[number] >= end]
        for number in writing:
            written[number] += (end - begin) * rates[len(writing)]
    assert written == pytest.approx(wanted, abs=1e-6)


def test_a_removed_request_leaves_its_remaining_tokens() -> None:
    engine = VirtualEngine(SPEED, 2)
    engine.admit(1, 0, 41, 0.0)
    engine.admit(2, 0, 81, 0.0)
    engine.admit(3, 5000, 7, 0.0)
    assert len(drive(engine, 1.0)) == 2
    assert engine.remove(1, 1.0) == 20
    assert engine.remove(3, 1.0) == 7
    assert drive(engine) == [(pytest.approx(1.0 + 60 / 40), 2, True)]
    assert engine.is_idle


def test_a_request_is_recomputed_and_resumes() -> None:
    engine = VirtualEngine(SPEED, 2)
    engine.admit(1, 100, 41, 0.0)
    drive(engine, 0.6)
    left = engine.remove(1, 0.6)
    assert left == 20
    assert engine.next_at == math.inf
    engine.admit(1, 100 + 41 - left, left, 5.0)
    assert drive(engine) == [(pytest.approx(5.121), 1, False), (pytest.approx(5.121 + 19 / 40), 1, True)]
