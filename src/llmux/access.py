"""The port between the gateway and everything behind it: leases on models.

The gateway asks for a lease and is called back: within the same call where the model is serving and nobody waits,
later otherwise. All calls are synchronous and happen on the event loop's thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from llmux.core.request import Priority as Priority
from llmux.errors import RequestError


class Outcome(Enum):
    """How a lease ended."""

    COMPLETED = auto()
    """The engine's answer was received to its end (whatever its status)."""
    CLIENT_GONE = auto()
    """The client left; the engine's work was cancelled by closing its connection."""
    BROKEN = auto()
    """The engine's answer broke off after bytes of it had reached the client."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where an engine listens, and how it is to be talked to."""

    host: str
    port: int
    api_key: str | None = None
    """Sent as a bearer token where the engine was started with ``--api-key``."""


class Lease:
    """Permission to send one request to one engine; ends with exactly one ``end`` or ``give_back``."""

    __slots__ = ("model", "queue_seconds", "request", "switch_seconds", "upstream")

    def __init__(
        self, request: int, model: str, upstream: Upstream, queue_seconds: float, switch_seconds: float | None
    ) -> None:
        self.request = request
        self.model = model
        self.upstream = upstream
        self.queue_seconds = queue_seconds
        self.switch_seconds = switch_seconds


class LeaseHolder(Protocol):
    """The gateway's side of one request."""

    def lease_granted(self, lease: Lease) -> None:
        """The request may be sent to ``lease.upstream`` now."""

    def lease_refused(self, error: RequestError) -> None:
        """The request will not be served; nothing more follows. After a grant it comes only if that was given back."""

    def lease_revoked(self, error: RequestError) -> None:
        """The lease just ended without the holder's doing (eviction, engine's death, shutdown).

        The holder closes its connection to the engine before it returns. If ``error`` is an ``EngineDied`` and it has
        sent nothing to the client yet, it calls ``ModelAccess.give_back``; else it answers ``error``, or ends the
        stream with it. ``ModelAccess.end`` is not called after a revocation.
        """

    def lease_frozen(self) -> None:
        """The request is being suspended with its engine; its last words may still come, even its end.

        What has not been sent to the engine must not be sent before the lease is thawed.
        """

    def lease_held(self) -> None:
        """A frozen request's engine is on its way back: nothing that it says may reach the client before the thaw."""

    def lease_thawed(self) -> None:
        """The request goes on."""


class ModelAccess(Protocol):
    """The runtime's side: where the gateway asks for leases and brings them back."""

    @property
    def models(self) -> Sequence[str]:
        """Every configured model, in the file's order."""

    def knows(self, model: str) -> bool:
        """Whether the model is configured."""

    def acquire(
        self,
        model: str,
        holder: LeaseHolder,
        *,
        size_bytes: int,
        may_wake: bool = True,
        priority: Priority = Priority.INTERACTIVE,
        streams: bool = False,
    ) -> int:
        """Ask for a lease; returns the request's number. ``holder`` may be called back before this returns.

        ``size_bytes`` is what the waiting request holds in memory. ``may_wake`` false: refused with ModelNotLoaded
        unless the model is serving now. ``streams``: ``answered`` will be called when the first token is out.
        """

    def cancel(self, request: int) -> None:
        """The client left while the request was waiting; idempotent, no call-back follows."""

    def answered(self, lease: Lease) -> None:
        """The first bytes of the answer's body have come."""

    def end(self, lease: Lease, outcome: Outcome) -> None:
        """The lease's request is over and its connection to the engine closed or idle."""

    def give_back(self, lease: Lease, reason: str) -> None:
        """The engine was lost before one byte of its answer had been sent on: ask whether it lives, then try again.

        The holder is called back exactly once more: ``lease_granted`` anew, or ``lease_refused``.
        """

    def confirm_alive(self, lease: Lease, report: Callable[[bool], None]) -> None:
        """Ask the engine's /health twice, for at most 550 ms in all, whether a 5xx answer was its last words."""
