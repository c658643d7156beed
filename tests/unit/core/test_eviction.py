"""The table of ways off the GPU."""

import pytest

from llmux.core.eviction import STOP, Eviction
from llmux.core.settings import ALL_OF_EVERY_GPU
from tests.support.core_scenarios import CHECKPOINT, DISCARD, NEVER_LEAVES, OFFLOAD, SUSPEND


def test_an_eviction_is_read_as_it_is_written():
    for eviction in (STOP, OFFLOAD, DISCARD, SUSPEND, CHECKPOINT, NEVER_LEAVES):
        assert Eviction.parse(str(eviction)) == eviction
    for text in ("offload", "offload+sleep", "away+stop"):
        with pytest.raises(ValueError, match=r"form|not a valid"):
            Eviction.parse(text)


def test_only_stop_needs_a_cold_start():
    assert not STOP.keeps_process
    assert CHECKPOINT.keeps_process


def test_a_model_that_never_leaves_keeps_its_memory():
    assert ALL_OF_EVERY_GPU.residue(NEVER_LEAVES) == ALL_OF_EVERY_GPU.awake
    assert ALL_OF_EVERY_GPU.residue(OFFLOAD) == {}
