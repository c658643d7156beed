import pytest

from llmux.core.eviction import Eviction
from llmux.engines.steps import (
    DumpProcess,
    PauseRequests,
    Sleep,
    SleepLevel,
    StopProcess,
    UnsupportedEviction,
    steps_of,
)

OFFLOAD, DISCARD = Sleep(SleepLevel.OFFLOAD), Sleep(SleepLevel.DISCARD)


@pytest.mark.parametrize(
    ("eviction", "steps"),
    [
        ("retain+keep_running", ()),
        ("offload+keep_running", (OFFLOAD,)),
        ("discard+keep_running", (DISCARD,)),
        ("retain+checkpoint", (DumpProcess(),)),
        ("offload+checkpoint", (OFFLOAD, DumpProcess())),
        ("discard+checkpoint", (DISCARD, DumpProcess())),
        ("retain+stop", (StopProcess(),)),
        ("offload+stop", (StopProcess(),)),
        ("discard+stop", (StopProcess(),)),
    ],
)
def test_steps(eviction: str, steps: tuple[object, ...]) -> None:
    assert steps_of(Eviction.parse(eviction)) == steps


@pytest.mark.parametrize(
    ("eviction", "steps"),
    [
        ("offload+keep_running", (Sleep(SleepLevel.OFFLOAD, keeps_requests=True),)),
        ("discard+checkpoint", (Sleep(SleepLevel.DISCARD, keeps_requests=True), DumpProcess())),
        ("retain+checkpoint", (PauseRequests(), DumpProcess())),
    ],
)
def test_steps_that_keep_requests(eviction: str, steps: tuple[object, ...]) -> None:
    assert steps_of(Eviction.parse(eviction), freeze=True) == steps


def test_what_does_not_exist_yet_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedEviction, match=r"offload\+cuda_suspend.*not available yet"):
        steps_of(Eviction.parse("offload+cuda_suspend"))
