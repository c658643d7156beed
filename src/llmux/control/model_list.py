"""The bodies that the data port serves from llmux's own state: ``/v1/models`` and ``/ready``."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from llmux.control.status import process_state
from llmux.errors import ModelNotFound
from llmux.gateway.options import LocalAnswer
from llmux.runtime.operations import ModelStatus, Operations


class ModelList:
    """The bodies of ``/v1/models`` and ``/ready``."""

    def __init__(self, operations: Operations, unready_reason: Callable[[], str | None]) -> None:
        """``unready_reason`` says why llmux is not ready for requests: it starts or stops. None: it is."""
        self._operations = operations
        self._unready_reason = unready_reason

    def models(self) -> LocalAnswer:
        """Every configured model with its state. Never wakes a model: clients list models all the time."""
        data = [_entry(model) for model in self._operations.status().models]
        return LocalAnswer(msgspec.json.encode({"object": "list", "data": data}))

    def model(self, name: str) -> LocalAnswer | None:
        """One model's entry; None if it is not configured."""
        try:
            return LocalAnswer(msgspec.json.encode(_entry(self._operations.model_status(name))))
        except ModelNotFound:
            return None

    def ready(self) -> LocalAnswer:
        """200 from the end of the start until shutdown begins, else 503 with the reason."""
        reason = self._unready_reason()
        if reason is None:
            return LocalAnswer(b'{"status":"ready"}')
        return LocalAnswer(msgspec.json.encode({"status": "not ready", "reason": reason}), status=503)


def _entry(model: ModelStatus) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "None",
        "state": process_state(model.state),
        "on_gpu": model.on_gpu,
        "in_flight": model.in_flight,
        "queue_depth": model.queue_depth,
    }
