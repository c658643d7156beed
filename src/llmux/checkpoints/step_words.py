"""Residency steps as the words that a manifest keeps."""

from typing import assert_never

from llmux.residency.steps import DumpProcess, PauseRequests, Sleep, SleepLevel, Step, StopProcess

SLEEP = {"sleep 1": SleepLevel.OFFLOAD, "sleep 2": SleepLevel.DISCARD}


def step_word(step: Step) -> str:
    """The step as a word."""
    match step:
        case Sleep(level):
            return f"sleep {level.value}"
        case StopProcess():
            return "stop"
        case PauseRequests():
            return "pause"
        case DumpProcess():
            return "dump"
        case _:
            assert_never(step)


def parse_step(word: str) -> Step:
    """The step of a word; raises ValueError."""
    match word:
        case "stop":
            return StopProcess()
        case "pause":
            return PauseRequests()
        case "dump":
            return DumpProcess()
        case _ if word in SLEEP:
            return Sleep(SLEEP[word])
        case _:
            raise ValueError(f"no step is called {word!r}")
