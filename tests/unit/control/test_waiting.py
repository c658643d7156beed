"""The sentences about what requests wait for."""

import pytest

from llmux.control.waiting import wait_document, wait_text
from llmux.core.waiting import (
    BackingOff,
    Behind,
    ForDrain,
    ForGpuLease,
    ForMemory,
    ForSlot,
    ForTurn,
    Leaving,
    NotAllowed,
    OnItsWay,
    WaitReason,
)
from llmux.errors import FailureReason


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (ForSlot(8), "all 8 slots of its engine are taken"),
        (OnItsWay(35.2, 19.7, from_cold=True), "is starting for 35 s, about 20 s left"),
        (OnItsWay(2.0, None, from_cold=False), "is waking for 2 s"),
        (Leaving("b"), "leaves the GPU for b before it can come back"),
        (Leaving(None), "leaves the GPU before it can come back"),
        (ForDrain(("qwen",), 3, 12.1), "waits for qwen to drain (3 requests, 12 s left at most)"),
        (ForDrain(("a", "b"), 1, -0.1), "waits for a, b to drain (1 request, 0 s left at most)"),
        (ForMemory(("a", "b")), "waits for the GPU memory of a, b"),
        (ForGpuLease("GPU lease 3"), "waits for GPU lease 3 to end"),
        (ForTurn(("a",), 4.0), "overdue in 4 s; a may stay for now"),
        (ForTurn(("a",), -1.0), "overdue; a may stay for now"),
        (ForTurn((), 4.0), "is not due yet; overdue in 4 s"),
        (Behind("b"), "b goes first"),
        (BackingOff(4.0, FailureReason("a secret", "it ended")), "is tried again in 4 s: it ended"),
        (NotAllowed("b"), "the operator has only b served"),
        (NotAllowed(None), "the operator has no model served"),
    ],
)
def test_each_reason_in_one_sentence(reason: WaitReason, text: str) -> None:
    assert wait_text(reason) == text


def test_the_document_has_the_facts_too() -> None:
    assert wait_document(ForDrain(("a",), 2, 1.23456)) == {
        "for": "drain",
        "text": "waits for a to drain (2 requests, 1 s left at most)",
        "models": ("a",),
        "in_flight": 2,
        "left_seconds_max": 1.235,
    }
    assert wait_document(BackingOff(4.0, FailureReason("whole", "short")))["reason"] == "whole"
