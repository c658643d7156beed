import pytest

from llmux.engines.step_words import parse_step, step_word
from llmux.engines.steps import DumpProcess, PauseRequests, Sleep, SleepLevel, Step, StopProcess

STEPS: list[Step] = [
    Sleep(SleepLevel.OFFLOAD),
    Sleep(SleepLevel.DISCARD),
    StopProcess(),
    PauseRequests(),
    DumpProcess(),
]


def test_each_step_has_a_word_of_its_own() -> None:
    words = list(map(step_word, STEPS))
    assert words == ["sleep 1", "sleep 2", "stop", "pause", "dump"]
    assert list(map(parse_step, words)) == STEPS


def test_unknown_word() -> None:
    with pytest.raises(ValueError, match="no step is called 'sleep 3'"):
        parse_step("sleep 3")
