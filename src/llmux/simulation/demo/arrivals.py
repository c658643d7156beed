"""When which client asks for what: random, and the same for the same seed."""

import random
from collections.abc import Iterator

from llmux.simulation.demo.records import Call, Kind
from llmux.simulation.demo.scenario import MODELS

REQUESTS_PER_SECOND = 9.0
KIND_SHARES = {Kind.CHAT_STREAM: 0.6, Kind.CHAT: 0.25, Kind.COMPLETION: 0.15}
LEAVING_SHARE = 0.12
PATIENCE_SECONDS = (0.1, 1.5)
ANSWER_TOKENS = (8, 48)
SUBJECTS = ("the tide", "a lighthouse", "rust on iron", "two trains", "a prime number", "old maps", "the north wind")


def arrivals(seed: int, seconds: float) -> Iterator[Call]:
    """Calls in the order of their times, for so many seconds; each prompt is another one."""
    chance = random.Random(seed)
    names = [model.name for model in MODELS]
    shares = [model.share for model in MODELS]
    kinds, kind_shares = list(KIND_SHARES), list(KIND_SHARES.values())
    at_seconds, number = 0.0, 0
    while at_seconds < seconds:
        number += 1
        yield Call(
            at_seconds,
            chance.choices(names, shares)[0],
            chance.choices(kinds, kind_shares)[0],
            f"Question {number}: what do you say about {chance.choice(SUBJECTS)}?",
            chance.randint(*ANSWER_TOKENS),
            chance.uniform(*PATIENCE_SECONDS) if chance.random() < LEAVING_SHARE else None,
        )
        at_seconds += chance.expovariate(REQUESTS_PER_SECOND)
