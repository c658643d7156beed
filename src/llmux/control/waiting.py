"""Why requests wait, as documents and in one sentence each, for the status page and the command line."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, assert_never

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

_KINDS: dict[type[WaitReason], str] = {
    ForSlot: "slot",
    OnItsWay: "on_its_way",
    Leaving: "leaving",
    ForDrain: "drain",
    ForMemory: "memory",
    ForGpuLease: "gpu_lease",
    ForTurn: "turn",
    Behind: "behind",
    BackingOff: "back_off",
    NotAllowed: "mode",
}


def wait_document(reason: WaitReason) -> dict[str, Any]:
    """``for`` names the kind of reason, ``text`` is the sentence, and the rest are the facts that it is made of."""
    facts = {field.name: _plain(getattr(reason, field.name)) for field in fields(reason)}
    return {"for": _KINDS[type(reason)], "text": wait_text(reason), **facts}


def wait_text(reason: WaitReason) -> str:
    """The reason, to be read after the model's name."""
    match reason:
        case ForSlot(in_flight=in_flight):
            return f"all {in_flight} slots of its engine are taken"
        case OnItsWay(elapsed_seconds=elapsed, left_seconds=left, from_cold=from_cold):
            what = "is starting" if from_cold else "is waking"
            return f"{what} for {_seconds(elapsed)}" + ("" if left is None else f", about {_seconds(left)} left")
        case Leaving(target=target):
            return "leaves the GPU" + ("" if target is None else f" for {target}") + " before it can come back"
        case ForDrain(models=models, in_flight=in_flight, left_seconds_max=left):
            requests = "1 request" if in_flight == 1 else f"{in_flight} requests"
            return f"waits for {_names(models)} to drain ({requests}, {_seconds(left)} left at most)"
        case ForMemory(models=models):
            return f"waits for the GPU memory of {_names(models)}"
        case ForGpuLease(lease=lease):
            return f"waits for {lease} to end"
        case ForTurn(models=models, overdue_in_seconds=seconds):
            when = f"overdue in {_seconds(seconds)}" if seconds > 0 else "overdue"
            return f"{when}; {_names(models)} may stay for now" if models else f"is not due yet; {when}"
        case Behind(model=model):
            return f"{model} goes first"
        case BackingOff(retry_in_seconds=seconds, reason=why):
            # The short form: the status has the whole text beside it.
            return f"is tried again in {_seconds(seconds)}: {why.for_clients}"
        case NotAllowed(allowed=allowed):
            return "the operator has no model served" if allowed is None else f"the operator has only {allowed} served"
        case _:
            assert_never(reason)


def _names(models: Sequence[str]) -> str:
    return ", ".join(models)


def _seconds(seconds: float) -> str:
    return f"{max(0.0, seconds):.0f} s"


def _plain(value: object) -> object:
    match value:
        case float():
            return round(value, 3)
        case FailureReason():
            return value.text
        case _:
            return value
