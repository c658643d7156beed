"""How ``llmux validate`` presents its results."""

import pytest

from llmux.cli.validate import document, policy_word
from llmux.core.eviction import Eviction
from llmux.tools.standalone import Memory
from llmux.tools.validation import Trial, Validation


@pytest.mark.parametrize(
    ("eviction", "word"),
    [
        ("offload+keep_running", "Offload+KeepRunning"),
        ("retain+cuda_suspend", "Retain+CudaSuspend"),
        ("discard+checkpoint", "Discard+Checkpoint"),
    ],
)
def test_policies_are_written_as_in_077(eviction: str, word: str) -> None:
    assert policy_word(Eviction.parse(eviction)) == word


def test_what_was_not_reached_is_null() -> None:
    trial = Trial(Eviction.parse("retain+stop"), sleep_seconds=0.5, before=Memory(None, 900), reasons=["it died"])
    found = document(Validation("m", "4", is_judged_by_gpu=False, trials=(trial,)))
    assert found == {
        "model": "m",
        "baseline": "4",
        "freed_memory_judged_by": "host",
        "passed": False,
        "policies": [
            {
                "policy": "retain+stop",
                "sleep_seconds": 0.5,
                "wake_seconds": None,
                "gpu_mib": {"before": None, "asleep": None, "awake": None},
                "host_mib": {"before": 900, "asleep": None, "awake": None},
                "same_answer": None,
                "passed": False,
                "reasons": ["it died"],
            }
        ],
    }
