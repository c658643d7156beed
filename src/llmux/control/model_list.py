"""The bodies that the data port serves from llmux's own state: ``/v1/models`` and ``/ready``."""

import time
from collections.abc import Callable
from typing import Any, assert_never

import msgspec

from llmux.control.status import need_object, process_state
from llmux.core.eviction import Eviction, Process
from llmux.core.names import ModelName, NameKind
from llmux.core.states import Asleep, Cold, Draining, Evicting, Failed, Serving, State, Stuck, Waking
from llmux.gateway.options import LocalAnswer
from llmux.runtime.operations import Operations


class ModelList:
    """The bodies of ``/v1/models`` and ``/ready``."""

    def __init__(
        self,
        operations: Operations,
        max_length_of: Callable[[str], int | None],
        unready_reason: Callable[[], str | None],
    ) -> None:
        """``max_length_of`` is how many tokens a request of a model may have; None where that is not known.

        ``unready_reason`` says why llmux is not ready for requests: it starts or stops. None: it is.
        """
        self._operations = operations
        self._max_length_of = max_length_of
        self._created = int(time.time())
        self._unready_reason = unready_reason

    def models(self) -> LocalAnswer:
        """Every name with its model's state. Never wakes a model: clients list models all the time.

        Only the paths of weights are left out, which would show each model twice.
        """
        facts: dict[str, dict[str, Any]] = {}
        data = []
        for name in self._operations.names.values():
            if name.kind is NameKind.PATH:
                continue
            if name.model not in facts:
                facts[name.model] = self._facts(name.model)
            data.append(self._entry(name, facts[name.model]))
        return LocalAnswer(msgspec.json.encode({"object": "list", "data": data}))

    def model(self, name: str) -> LocalAnswer | None:
        """The entry of one name; None if there is no such name."""
        found = self._operations.names.get(name)
        return None if found is None else LocalAnswer(msgspec.json.encode(self._entry(found, self._facts(found.model))))

    def ready(self) -> LocalAnswer:
        """200 from the end of the start until shutdown begins, else 503 with the reason."""
        reason = self._unready_reason()
        if reason is None:
            return LocalAnswer(b'{"status":"ready"}')
        return LocalAnswer(msgspec.json.encode({"status": "not ready", "reason": reason}), status=503)

    def _entry(self, name: ModelName, facts: dict[str, Any]) -> dict[str, Any]:
        """As engines list it, then its model's fields. ``parent`` is the model that the name belongs to."""
        return {
            "id": name.name,
            "object": "model",
            "created": self._created,
            "owned_by": "llmux",
            "root": name.root,
            "parent": None if name.kind is NameKind.MODEL else name.model,
            **facts,
        }

    def _facts(self, name: str) -> dict[str, Any]:
        """The fields that all names of a model share: ``max_model_len`` as engines list it, the others llmux's own."""
        model = self._operations.model_status(name)
        max_length = self._max_length_of(name)
        return {
            **({} if max_length is None else {"max_model_len": max_length}),
            "status": {"value": status_word(model.state)},
            "state": process_state(model.state, for_clients=True),
            "on_gpu": model.on_gpu,
            **({} if model.need is None else {"gpu_need": need_object(model.need)}),
            "in_flight": model.in_flight,
            "queue_depth": model.queue_depth,
        }


def status_word(state: State) -> str:
    """A model's state in the words of llama.cpp's model list, which user interfaces know."""
    match state:
        case Cold() | Evicting(eviction=Eviction(process=Process.STOP)):
            return "unloaded"
        case Waking():
            return "loading"
        case Serving() | Draining():
            return "loaded"
        case Asleep() | Evicting():
            return "sleeping"
        case Failed() | Stuck():
            return "failed"
        case _:
            assert_never(state)
