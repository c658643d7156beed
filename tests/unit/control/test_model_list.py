"""The word for a model's state in /v1/models."""

import pytest

from llmux.control.model_list import status_word
from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking
from llmux.errors import FailureReason

SLEEPS = Eviction(Weights.OFFLOAD, Process.KEEP_RUNNING)
STOPS = Eviction(Weights.RETAIN, Process.STOP)


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (Cold(), "unloaded"),
        (Evicting(0.0, STOPS), "unloaded"),
        (Waking(0.0, None), "loading"),
        (Waking(0.0, SLEEPS), "loading"),
        (Serving(0.0), "loaded"),
        (Draining(0.0, 0.0, 1.0, STOPS), "loaded"),
        (Asleep(SLEEPS), "sleeping"),
        (Evicting(0.0, SLEEPS), "sleeping"),
        (Failed(FailureReason("crash"), 1.0, refusing=False), "failed"),
        (Stuck(FailureReason("hangs"), 1.0), "failed"),
    ],
)
def test_every_state_has_a_word(state: State, word: str) -> None:
    assert status_word(state) == word
