"""The documents that the control API shows."""

from dataclasses import asdict
from typing import Any

from llmux.control.wording import describe_mode, overall_state, process_state
from llmux.core.eviction import Eviction
from llmux.core.model import Transition
from llmux.core.states import State
from llmux.runtime.operations import ModelStatus, Operations

_TIMES = frozenset(("since", "serving_since", "deadline", "retry_at"))
"""Fields of states that are times on the scheduler's clock, which means nothing outside."""


def status_document(operations: Operations) -> dict[str, Any]:
    """``GET /control/status``: the fields of 0.7.7, and ours."""
    status = operations.status()
    return {
        "state": overall_state(status),
        # In 0.7.7 no model is active while one is being switched to.
        "active_model": status.active_model if status.switching is None else None,
        "mode": describe_mode(status.mode),
        "models": {model.name: _model_entry(model) for model in status.models},
        "resident": list(status.resident),
    }


def eviction_document(operations: Operations) -> dict[str, Any]:
    """``GET /control/eviction``: how each model leaves the GPU."""
    return {
        "models": {
            model.name: {"eviction": eviction_words(model.eviction), "process_state": process_state(model.state)}
            for model in operations.status().models
        }
    }


def story_document(operations: Operations, model: str) -> dict[str, Any]:
    """A model's latest transitions, oldest first. Raises ModelNotFound."""
    now = operations.now()
    return {"model": model, "story": [_transition(transition, now) for transition in operations.history(model)]}


def logs_document(operations: Operations, model: str) -> dict[str, Any]:
    """The last lines of output of a model's engine. Raises ModelNotFound."""
    return {"model": model, "lines": list(operations.output_tail(model))}


def eviction_words(eviction: Eviction) -> dict[str, str]:
    """An eviction as the API writes it."""
    return {"weights": eviction.weights.value, "process": eviction.process.value}


def _model_entry(model: ModelStatus) -> dict[str, Any]:
    return {
        "in_flight": model.in_flight,
        "queue_depth": model.queue_depth,
        "process_state": process_state(model.state),
        "eviction": eviction_words(model.eviction),
        "on_gpu": model.on_gpu,
        "pid": model.pid,
        "failure": model.failure,
        "oldest_wait_seconds": round(model.oldest_wait_seconds, 3),
        "frozen": model.frozen,
        "unfaithful": [str(eviction) for eviction in model.unfaithful],
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
    return {"state": type(state).__name__.lower(), **facts}
