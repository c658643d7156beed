"""How ``llmux validate`` presents its results."""

import csv
from pathlib import Path

import pytest

from llmux.cli.validate import append_to_matrix, default_evictions, document, policy_word
from llmux.core.eviction import Eviction
from llmux.tools.standalone import Memory
from llmux.tools.validation import Trial, Validation
from tests.support.engines import vllm_engine


def validation(*trials: Trial) -> Validation:
    return Validation(
        model="m",
        engine="vllm",
        version="0.32.0",
        model_path="org/m",
        baseline="4",
        is_judged_by_gpu=False,
        trials=trials,
    )


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
    found = document(validation(trial))
    assert found == {
        "model": "m",
        "engine": "vllm",
        "version": "0.32.0",
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


def test_the_matrix_collects_the_trials_of_many_runs(tmp_path: Path) -> None:
    file = tmp_path / "matrix.csv"
    worked = Trial(Eviction.parse("offload+keep_running"), 0.5, 0.25, Memory(None, 900), Memory(None, 100))
    worked.is_same_answer = True
    failed = Trial(Eviction.parse("retain+stop"), reasons=["it died", "and stayed so"])
    append_to_matrix(file, validation(worked))
    append_to_matrix(file, validation(failed))
    with file.open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert [(row["engine"], row["version"], row["model"], row["eviction"], row["passed"]) for row in rows] == [
        ("vllm", "0.32.0", "org/m", "offload+keep_running", "True"),
        ("vllm", "0.32.0", "org/m", "retain+stop", "False"),
    ]
    assert (rows[0]["freed_mib"], rows[0]["sleep_seconds"], rows[0]["wake_seconds"]) == ("800", "0.5", "0.25")
    assert rows[1]["reasons"] == "it died; and stayed so"


def test_an_engine_that_cannot_sleep_is_tried_by_stopping_it() -> None:
    assert list(map(str, default_evictions(vllm_engine()))) == ["offload+keep_running", "discard+keep_running"]
