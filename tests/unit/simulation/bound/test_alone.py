import pytest

from llmux.simulation.bound.alone import alone
from llmux.simulation.virtual.engine import EngineSpeed
from llmux.simulation.workload.call import TracedCall

SPEED = EngineSpeed(prefill=1000.0, decode_alone=40.0, decode_full=20.0)


def test_the_first_waits_for_the_wake_and_prompts_are_read_in_turn() -> None:
    found = alone([TracedCall(1.0, "a", 500, 1), TracedCall(1.1, "a", 500, 1)], SPEED, 8, 2.0)
    assert [entry.reading_at for entry in found] == [3.0, 3.5]
    assert [entry.first_token_at for entry in found] == [3.5, 4.0]


def test_the_batch_limit_holds_and_answers_take_as_long_as_alone() -> None:
    found = alone([TracedCall(0.0, "a", 0, 41)] * 5, SPEED, 2, 0.0)
    assert [entry.reading_at for entry in found] == pytest.approx([0.0, 0.0, 1.0, 1.0, 2.0])


def test_nothing() -> None:
    assert alone([], SPEED, 2, 0.0) == []
