"""Which tokens are on time, against counting them one by one."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.core.target import Target
from llmux.simulation.on_time import Progress, Punctuality, punctuality

TARGET = Target(10.0, 5.0)


def compared(arrived_at: float, progress: list[Progress]) -> Punctuality:
    """An answer whose first and last entries are its first and last token."""
    first, *paused, last = progress if len(progress) > 1 else [*progress, *progress]
    return punctuality(arrived_at, first.at, paused, last.at, last.tokens, TARGET)


def token_times(progress: list[Progress]) -> list[float]:
    times = [progress[0].at]
    for before, after in pairwise(progress):
        number = after.tokens - before.tokens
        times += [before.at + (after.at - before.at) * (count + 1) / number for count in range(number)]
    return times


@st.composite
def answers(draw: st.DrawFn) -> list[Progress]:
    progress = [Progress(draw(st.floats(0, 20)), 1)]
    for _ in range(draw(st.integers(0, 6))):
        last = progress[-1]
        progress.append(Progress(last.at + draw(st.floats(0, 30)), last.tokens + draw(st.integers(0, 40))))
    return progress


@given(answers())
def test_it_is_as_if_each_token_were_looked_at(progress: list[Progress]) -> None:
    found = compared(1.0, progress)
    lateness = [at - (1.0 + 10.0 + number / 5.0) for number, at in enumerate(token_times(progress))]
    surely, perhaps = sum(one < -1e-6 for one in lateness), sum(one <= 1e-6 for one in lateness)
    assert surely <= found.tokens_on_time <= perhaps
    stalls = [at - progress[0].at - number / 5.0 for number, at in enumerate(token_times(progress))]
    assert found.stall_seconds == pytest.approx(max(stalls), abs=1e-6)


def test_a_pause_that_the_reader_does_not_notice_is_no_stall() -> None:
    # 101 tokens within 2 s are read until 22 s; the pause of 15 s is over by then.
    hidden = [Progress(2.0, 1), Progress(4.0, 101), Progress(19.0, 102), Progress(20.0, 120)]
    found = compared(0.0, hidden)
    assert (found.tokens_on_time, found.stall_seconds) == (120, 0.0)
