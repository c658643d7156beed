"""The entries of /v1/models: what they say of a state, and how often it is read."""

import json
from dataclasses import dataclass, field
from typing import cast

import pytest

from llmux.control.model_list import ModelList, status_word
from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.names import ModelName, NameKind, register
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking
from llmux.errors import FailureReason
from llmux.runtime.operations import ModelStatus, Operations

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


NAMES = [
    ModelName(name, model, name, kind)
    for model in ("a", "b")
    for name, kind in [
        (model, NameKind.MODEL),
        (f"{model}-alias", NameKind.ALIAS),
        (f"{model}-adapter", NameKind.ADAPTER),
        (f"/weights/{model}", NameKind.PATH),
    ]
]


@dataclass
class CountedOperations:
    """Says that every model is cold, and remembers who asked."""

    asked: list[str] = field(default_factory=list)
    names = register(NAMES)

    def model_status(self, name: str) -> ModelStatus:
        self.asked.append(name)
        return ModelStatus(
            name, state=Cold(), in_flight=0, queue_depth=0, eviction=STOPS, pid=None, oldest_wait_seconds=0.0
        )


def test_a_models_state_is_read_once_however_many_names_it_has() -> None:
    operations = CountedOperations()
    lengths: list[str] = []

    def max_length(model: str) -> int:
        lengths.append(model)
        return 100

    models = ModelList(cast("Operations", operations), max_length, lambda: None)
    entries = json.loads(models.models().body)["data"]
    assert [entry["id"] for entry in entries] == ["a", "a-alias", "a-adapter", "b", "b-alias", "b-adapter"]
    assert {(entry["max_model_len"], entry["state"]) for entry in entries} == {(100, "not_started")}
    assert operations.asked == lengths == ["a", "b"]
    one = models.model("b-alias")
    assert one is not None
    assert json.loads(one.body) == entries[4]
