"""The three ways to write an eviction."""

import pytest
from pydantic import TypeAdapter, ValidationError

from llmux.config.eviction import LEVELS, EvictionField, EvictionSettings
from llmux.core.eviction import Eviction, Process, Weights

ADAPTER: TypeAdapter[EvictionSettings] = TypeAdapter(EvictionField)


@pytest.mark.parametrize("weights", Weights)
@pytest.mark.parametrize("process", Process)
def test_mapping_and_word_mean_the_same(weights: Weights, process: Process) -> None:
    mapping = ADAPTER.validate_python({"weights": weights.value, "process": process.value})
    word = ADAPTER.validate_python(f"{weights}+{process}")
    assert mapping == word
    assert word.eviction == Eviction(weights, process)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (1, "offload+keep_running"),
        (2, "discard+keep_running"),
        (3, "retain+cuda_suspend"),
        (4, "discard+checkpoint"),
        (5, "retain+stop"),
    ],
)
def test_the_old_levels(level: int, expected: str) -> None:
    assert str(ADAPTER.validate_python(level).eviction) == expected
    assert len(LEVELS) == 5


@pytest.mark.parametrize("value", [0, 6, -1, True, 1.0, "stop", "offload+", "a+b", "", None, [], {"weights": "retain"}])
def test_everything_else_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(value)
