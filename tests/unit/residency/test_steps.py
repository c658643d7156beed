import pytest

from llmux.core.eviction import Eviction
from llmux.residency.steps import Sleep, SleepLevel, StopProcess, UnsupportedEviction, steps_of


@pytest.mark.parametrize(
    ("eviction", "steps"),
    [
        ("retain+keep_running", ()),
        ("offload+keep_running", (Sleep(SleepLevel.OFFLOAD),)),
        ("discard+keep_running", (Sleep(SleepLevel.DISCARD),)),
        ("retain+stop", (StopProcess(),)),
        ("offload+stop", (StopProcess(),)),
        ("discard+stop", (StopProcess(),)),
    ],
)
def test_steps(eviction: str, steps: tuple[object, ...]) -> None:
    assert steps_of(Eviction.parse(eviction)) == steps


@pytest.mark.parametrize("process", ["cuda_suspend", "checkpoint"])
def test_what_does_not_exist_yet_is_refused_by_name(process: str) -> None:
    with pytest.raises(UnsupportedEviction, match=f"offload\\+{process}.*not available yet"):
        steps_of(Eviction.parse(f"offload+{process}"))
