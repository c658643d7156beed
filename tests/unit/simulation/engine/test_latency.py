import pytest

from llmux.simulation.engine.latency import Timings


def test_the_prompt_is_read_at_its_rate_or_costs_nothing() -> None:
    assert Timings(prefill_tokens_per_second=100).prefill_seconds(200) == 2.0
    assert Timings().prefill_seconds(10**6) == 0.0


def test_a_full_batch_slows_tokens_down_in_a_line_of_their_rate() -> None:
    timings = Timings(token_seconds=1 / 40, full_batch_token_seconds=1 / 20)
    assert [1 / timings.before_token(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([40.0, 30.0, 20.0])


def test_without_more_the_batch_costs_nothing() -> None:
    assert Timings(token_seconds=0.1).before_token(1.0) == 0.1
    assert Timings(full_batch_token_seconds=0.1).before_token(1.0) == 0.0
