"""The bodies that the data port serves from llmux's own state: ``/v1/models`` and ``/ready``."""

import time
from typing import Any

import msgspec

from llmux.control.status import process_state
from llmux.errors import ModelNotFound
from llmux.gateway.options import LocalAnswer
from llmux.runtime.operations import ModelStatus, Operations


class ModelList:
    """The bodies of ``/v1/models`` and ``/ready``."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self.is_ready = False
        """True while requests are accepted: from the end of the start until shutdown begins."""

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
        """200 while requests are accepted, else 503."""
        if self.is_ready:
            return LocalAnswer(b'{"status":"ready"}')
        return LocalAnswer(b'{"status":"not ready"}', status=503)


def _entry(model: ModelStatus) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "None",
        "state": process_state(model.state, for_clients=True),
        "on_gpu": model.on_gpu,
        "in_flight": model.in_flight,
        "queue_depth": model.queue_depth,
    }
