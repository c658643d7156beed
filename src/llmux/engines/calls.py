"""Calls to one running engine, as the kinds of engines make them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llmux.errors import ControlCallFailed


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


@dataclass(frozen=True, slots=True)
class RankCalls:
    """The methods of vLLM's workers, called by ``/collective_rpc``, that let the ranks go of each other and back.

    The defaults are vLLM's own, of 0.32; the engine that 0.7.7 patches has ``suspend_nccl`` and ``resume_nccl``.
    """

    prepare: str = "checkpoint_prepare"
    restore: str = "checkpoint_restore"


async def told_max_model_length(endpoints: Endpoints, timeouts: ControlTimeouts) -> int | None:
    """How many tokens a request may have, from the engine's list of models; None if it does not say."""
    try:
        listed = await endpoints.get("/v1/models", timeouts.read_back_seconds)
        length = listed["data"][0]["max_model_len"]
    except (ControlCallFailed, LookupError, TypeError):
        return None
    return length if isinstance(length, int) else None
