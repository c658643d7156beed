"""The documents of the control API. States, modes and evictions are spelt as in 0.7.7, whose scripts go on working."""

from dataclasses import asdict
from typing import Any, assert_never

from llmux.control.waiting import wait_document
from llmux.core.eviction import Eviction, Process, Weights
from llmux.core.forecast import Forecast
from llmux.core.model import Transition
from llmux.core.need import Need
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
from llmux.core.waiting import WaitReason
from llmux.errors import FailureReason
from llmux.runtime.operations import ModelStatus, Operations, Status

_WEIGHTS = {Weights.RETAIN: "Retain", Weights.OFFLOAD: "Offload", Weights.DISCARD: "Discard"}
_PROCESSES = {
    Process.KEEP_RUNNING: "KeepRunning",
    Process.CUDA_SUSPEND: "CudaSuspend",
    Process.CHECKPOINT: "Checkpoint",
    Process.STOP: "Stop",
}

_TIMES = frozenset(("since", "serving_since", "deadline", "retry_at"))
"""Fields of states that are times on the scheduler's monotonic clock, which is meaningless outside this process."""


def status_document(operations: Operations) -> dict[str, Any]:
    """``GET /control/status``: 0.7.7's fields (``state`` to ``eviction`` of a model) and further ones."""
    status = operations.status()
    return {
        "state": overall_state(status),
        # In 0.7.7 no model is active while one is being switched to.
        "active_model": status.active_model if status.switching is None else None,
        "mode": mode_object(status.mode),
        "models": {
            model.name: _model_entry(model, status.waits.get(model.name), status.forecasts.get(model.name))
            for model in status.models
        },
        "resident": list(status.resident),
        "gpus": {gpu.name: {"memory_mib": gpu.total_mib, "free_mib": gpu.free_mib} for gpu in status.gpus},
        "prefetch": status.prefetch,
        "offered_load": None if status.offered_load is None else round(status.offered_load, 3),
        "overload_seconds": None if status.overload_seconds is None else round(status.overload_seconds, 3),
    }


def eviction_document(operations: Operations) -> dict[str, Any]:
    """``GET /control/eviction``: each model's eviction and state."""
    return {
        "models": {
            model.name: {"eviction": eviction_object(model.eviction), "process_state": process_state(model.state)}
            for model in operations.status().models
        }
    }


def history_document(operations: Operations, model: str) -> dict[str, Any]:
    """``GET /control/models/NAME/story``: a model's latest transitions, oldest first. Raises ModelNotFound."""
    now = operations.now()
    return {"model": model, "story": [_transition(transition, now) for transition in operations.history(model)]}


def logs_document(operations: Operations, model: str) -> dict[str, Any]:
    """``GET /control/models/NAME/logs``: the last lines of output of a model's engine. Raises ModelNotFound."""
    return {"model": model, "lines": list(operations.output_tail(model))}


def eviction_object(eviction: Eviction) -> dict[str, str]:
    """An eviction as a JSON object."""
    return {"weights": eviction.weights.value, "process": eviction.process.value}


def need_object(need: Need) -> dict[str, str | int | None]:
    """What a model needs of a GPU as a JSON object."""
    return {"mib": need.mib, "source": need.source.value, "said_mib": need.said_mib}


def _model_entry(model: ModelStatus, waits: WaitReason | None, forecast: Forecast | None) -> dict[str, Any]:
    return {
        "in_flight": model.in_flight,
        "queue_depth": model.queue_depth,
        "process_state": process_state(model.state),
        "eviction": eviction_object(model.eviction),
        "on_gpu": model.on_gpu,
        "stays": model.is_kept,
        "gpu_mib": dict(model.gpu_mib),
        "host_mib": model.host_mib,
        "gpu_need": None if model.need is None else need_object(model.need),
        "pid": model.pid,
        "address": model.address,
        "failure": model.failure,
        "oldest_wait_seconds": round(model.oldest_wait_seconds, 3),
        "waits": None if waits is None else wait_document(waits),
        "expected_in_seconds": None if forecast is None else round(forecast.admitted_in_seconds, 3),
        "frozen": model.frozen,
        "waking_seconds": None if model.waking_seconds is None else round(model.waking_seconds, 3),
        "leaves_in_seconds": None if model.leaves_in_seconds is None else round(model.leaves_in_seconds, 3),
        "streams": {"on_time": model.streams_on_time, "late": model.streams_late},
        "stalls": model.stalls,
        "last_stall": model.last_stall,
        "images": model.images,
        "unfaithful": [str(eviction) for eviction in model.distrusted_evictions],
    }


def _transition(transition: Transition, now: float) -> dict[str, Any]:
    return {
        "seconds_ago": round(now - transition.at, 3),
        "event": transition.event,
        "before": _state_entry(transition.before),
        "after": _state_entry(transition.after),
    }


def _state_entry(state: State) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(state).items() if name not in _TIMES}
    for name in ("reason", "crash"):
        if isinstance(reason := getattr(state, name, None), FailureReason):
            facts[name] = reason.text
    return {"state": type(state).__name__.lower(), **facts}


def overall_state(status: Status) -> str:
    """``switching:a->b``, ``active:a`` or ``idle``; a is ``none`` if no model has to leave."""
    if status.switching is not None:
        leaving, coming = status.switching
        return f"switching:{leaving or 'none'}->{coming}"
    return "idle" if status.active_model is None else f"active:{status.active_model}"


def policy_word(eviction: Eviction) -> str:
    """An eviction in the form of 0.7.7's status and tables, such as ``Offload+KeepRunning``."""
    return f"{_WEIGHTS[eviction.weights]}+{_PROCESSES[eviction.process]}"


def process_state(state: State, *, for_clients: bool = False) -> str:
    """A model's state in one word, with a detail after a colon; for clients without what an engine printed.

    0.7.7 knew no drain and no wake in progress: a model is ``running`` until its engine begins to sleep, and
    ``sleeping`` until it is awake. One that is being stopped is ``running`` until it is gone.
    """
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
            return f"failed:{reason.for_clients if for_clients else reason}"
        case _:
            assert_never(state)


def mode_object(mode: Mode) -> dict[str, str]:
    """The mode, with the pinned model if there is one."""
    match mode:
        case Auto():
            return {"mode": "auto"}
        case Manual(pinned=pinned):
            return {"mode": "manual"} if pinned is None else {"mode": "manual", "pinned": pinned}
        case _:
            assert_never(mode)
