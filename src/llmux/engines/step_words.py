"""Residency steps as the words that a manifest keeps."""

from typing import assert_never

from llmux.engines.steps import DumpProcess, PauseRequests, Sleep, SleepLevel, Step, StopProcess

SLEEPS = {
    f"sleep {level.value}{keep}": Sleep(level, keeps_requests=bool(keep))
    for level in SleepLevel
    for keep in ("", " keep")
}


def step_word(step: Step) -> str:
    """The step as a word."""
    match step:
        case Sleep(level, keeps_requests):
            return f"sleep {level.value}{' keep' if keeps_requests else ''}"
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
        case _ if word in SLEEPS:
            return SLEEPS[word]
        case _:
            raise ValueError(f"no step is called {word!r}")
