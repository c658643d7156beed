"""Which tokens of an answer are on time, and how long its reader has to wait in the middle of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmux.core.identifiers import Seconds
from llmux.core.target import Target


@dataclass(frozen=True, slots=True)
class Progress:
    """How many tokens of an answer were out at a time."""

    at: Seconds
    tokens: int


class Punctuality(NamedTuple):
    """How an answer fared against its target.

    ``stall_seconds``: for how long, in all, a reader of the target's speed had nothing to read after the first token.
    """

    tokens_on_time: int
    stall_seconds: Seconds


def punctuality(
    arrived_at: Seconds,
    began_at: Seconds,
    paused: Sequence[Progress],
    ended_at: Seconds,
    tokens: int,
    target: Target,
) -> Punctuality:
    """Compare an answer with its target.

    ``paused`` has how far it was before and after each pause; in between, as from the first token (``began_at``) and to
    the last one (``ended_at``), tokens come evenly.
    """
    first_due_at = arrived_at + target.ttft_seconds
    reading_seconds = 1 / target.tokens_per_second
    on_time = 1 if began_at <= first_due_at else 0
    stalled = 0.0
    before_at, before = began_at, 1
    for number in range(len(paused) + 1):
        after_at, after = (ended_at, tokens) if number == len(paused) else (paused[number].at, paused[number].tokens)
        more = after - before
        if more > 0:
            # The n-th token after ``before`` comes at before_at + n * step and is due at due_at + n * reading_seconds.
            step = (after_at - before_at) / more
            due_at = first_due_at + (before - 1) * reading_seconds
            on_time += _on_time(more, due_at - before_at, reading_seconds - step)
            # The reader waits for what comes later than everything before it has been read. It is longest at an end.
            stalled = max(stalled, after_at - began_at - (after - 1) * reading_seconds)
            stalled = max(stalled, before_at + step - began_at - before * reading_seconds)
        before_at, before = after_at, after
    return Punctuality(on_time, max(0.0, stalled))


def _on_time(tokens: int, slack: Seconds, gained: Seconds) -> int:
    """Of this many tokens, those for which ``slack + n * gained`` is not negative, n counted from 1."""
    if gained >= 0:
        if slack + tokens * gained < 0:
            return 0
        late = 0 if slack + gained >= 0 else math.ceil(-slack / gained) - 1
        return tokens - max(0, late)
    return max(0, min(tokens, math.floor(slack / -gained))) if slack >= 0 else 0
