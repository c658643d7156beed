"""Calls to one running engine, as the kinds of engines make them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Endpoints(Protocol):
    """The endpoints of one engine; whoever made it knows where the engine listens."""

    async def get(self, path: str, timeout_seconds: float) -> Any:
        """GET; returns the JSON document, or None if the body is not JSON. Raises ControlCallFailed."""

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        """POST, without a body unless there is a ``document``; returns and raises as ``get``."""

    async def request(
        self, method: str, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None
    ) -> Any:
        """Any method, with a body if there is a ``document``; returns and raises as ``get``."""


@dataclass(frozen=True, slots=True)
class ControlTimeouts:
    """How long each control call may take."""

    sleep_seconds: float = 120.0
    wake_seconds: float = 120.0
    reload_seconds: float = 600.0
    reset_seconds: float = 30.0
    read_back_seconds: float = 30.0
