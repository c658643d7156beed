"""How states and modes are written: in 0.7.7's words, which its users' scripts read."""

from typing import assert_never

from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.states import (
    Asleep,
    Auto,
    Cold,
    Draining,
    Evicting,
    Failed,
    Manual,
    Mode,
    Serving,
    State,
    Stuck,
    Waking,
)
from llmux.runtime.operations import Status

_WEIGHTS = {Weights.RETAIN: "Retain", Weights.OFFLOAD: "Offload", Weights.DISCARD: "Discard"}
_PROCESSES = {
    Process.KEEP_RUNNING: "KeepRunning",
    Process.CUDA_SUSPEND: "CudaSuspend",
    Process.CHECKPOINT: "Checkpoint",
    Process.STOP: "Stop",
}


def overall_state(status: Status) -> str:
    """``switching:a->b``, ``active:a`` or ``idle``."""
    if status.switching is not None:
        leaving, coming = status.switching
        return f"switching:{leaving or 'none'}->{coming}"
    return "idle" if status.active_model is None else f"active:{status.active_model}"


def policy_word(eviction: Eviction) -> str:
    """``Offload+KeepRunning``."""
    return f"{_WEIGHTS[eviction.weights]}+{_PROCESSES[eviction.process]}"


def process_state(state: State) -> str:
    """A model's state. It counts as running until it has begun to leave, and as asleep until it is awake."""
    match state:
        case Cold():
            return "not_started"
        case Waking(asleep=None):
            return "starting"
        case Serving() | Draining() | Evicting(eviction=Eviction(process=Process.STOP)):
            return "running"
        case Asleep(Eviction(process=Process.CHECKPOINT)):
            return "checkpointed"
        case Waking(asleep=eviction) | Asleep(eviction) | Evicting(eviction=eviction):
            assert eviction is not None
            return f"sleeping:{policy_word(eviction)}"
        case Stuck(reason=reason) | Failed(reason=reason):
            return f"failed:{reason}"
        case _:
            assert_never(state)


def describe_mode(mode: Mode) -> dict[str, str]:
    """The mode, as the status shows it."""
    match mode:
        case Auto():
            return {"mode": "auto"}
        case Manual(pinned=pinned):
            return {"mode": "manual"} if pinned is None else {"mode": "manual", "pinned": pinned}
        case _:
            assert_never(mode)
