"""The port between the gateway and everything behind it: leases on models.

The gateway asks for a lease with a ``Request`` and is called back: within the same call where the model is serving and
nothing is queued, later otherwise. All calls are synchronous and happen on the event loop's thread.

A request holds a lease from ``RequestHolder.admitted`` until exactly one of ``ModelAccess.end``,
``ModelAccess.give_back`` and ``RequestHolder.revoked``.
"""

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeAlias

from llmux.core.forecast import Outlook
from llmux.core.names import Register
from llmux.core.request import Request
from llmux.errors import RequestError

KEEP_ALIVE_SECONDS = 4.0
"""For an engine of which nothing else is known: less than the 5 s that many servers keep theirs."""


class Outcome(Enum):
    """How a lease ended."""

    COMPLETED = auto()
    """The engine's answer was received to its end, whatever its status."""
    CLIENT_GONE = auto()
    """The client left; the engine's work was cancelled by closing its connection."""
    BROKEN = auto()
    """The client gets no whole answer, and did not leave: it broke off, cannot be passed on, or was not asked for."""


_VERSION = re.compile(r"/v[0-9][a-z0-9]*(?=/|$)")
_ENDS_WITH_VERSION = re.compile(r"/v[0-9][a-z0-9]*$")


@dataclass(frozen=True, slots=True)
class Remote:
    """How a server that llmux does not run is reached, and what it is not told of its clients."""

    tls: ssl.SSLContext | None = None
    """How its certificate is verified; None: it is spoken to in clear."""
    base_path: str = ""
    """Stands before the paths of requests; without a slash at its end."""

    def join(self, path: str) -> str:
        """The path that the server gets for a path of llmux's.

        A base path with a version, as ``/v1``, ``/api/v3`` or ``/v1beta/openai``, takes the place of ``/v1``.
        """
        base = self.base_path
        if _VERSION.search(base) is None:
            return base + path
        rest = path.removeprefix("/v1")
        if rest != path and rest[:1] in ("", "/", "?"):
            return base + rest
        # Outside of /v1, as /tokenize or /v2/rerank, engines have their paths beside it.
        return _ENDS_WITH_VERSION.sub("", base) + path

    def split(self, path: str) -> str:
        """The path of llmux's for a path of the server's: undoes ``join``; the same where it is not below the base."""
        base = self.base_path
        rest = path.removeprefix(base)
        if not base or rest == path or rest[:1] not in ("", "/", "?", "#"):
            return path
        return f"/v1{rest}" if _VERSION.search(base) else rest or "/"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where an engine listens, and how it is to be talked to.

    A running engine keeps one object: the gateway finds its connections by the object's identity.
    """

    host: str
    port: int
    api_key: str | None = None
    """Sent as a bearer token where the engine was started with ``--api-key``."""
    socket_path: str | None = None
    """The Unix socket that it listens on, instead of the port."""
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    """How long an idle connection to it is kept."""
    removed_headers: frozenset[str] = frozenset()
    """Header fields of clients, in lower case, that it must not get."""
    remote: Remote | None = None
    """None for an engine of this machine, on a Unix socket or a port of loopback."""

    @property
    def authority(self) -> str:
        """The value of ``Host`` in requests to it."""
        if self.socket_path is not None:
            return "localhost"
        if self.remote is not None and self.port == (80 if self.remote.tls is None else 443):
            return f"[{self.host}]" if ":" in self.host else self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> str:
        """Where it listens, for people."""
        if self.remote is not None:
            return self.url
        return self.authority if self.socket_path is None else f"unix:{self.socket_path}"

    @property
    def url(self) -> str:
        """What stands before the paths of requests, the base path included."""
        remote = self.remote
        if remote is None:
            return f"http://{self.authority}"
        return f"http{'' if remote.tls is None else 's'}://{self.authority}{remote.base_path}"

    def url_of(self, path: str) -> str:
        """The URL of a path of llmux's."""
        if self.remote is None:
            return f"http://{self.authority}{path}"
        return self.url.removesuffix(self.remote.base_path) + self.remote.join(path)


Progress: TypeAlias = tuple[bool, int]
"""How far an answer is: whether any of it has arrived, and a number that changes with every further byte."""


class RequestHolder(Protocol):
    """The gateway's side of one request."""

    def admitted(self, upstream: Upstream) -> None:
        """The request holds a lease and may be sent to the engine at ``upstream``.

        Its ``queue_seconds`` and ``switch_seconds`` tell what it waited for.
        """

    def rejected(self, error: RequestError) -> None:
        """The request will not be served; no call follows. After an admission it comes only after a ``give_back``."""

    def revoked(self, error: RequestError) -> None:
        """The lease has ended without the holder's doing: eviction, the engine's death, shutdown.

        The holder closes its connection to the engine before it returns. If ``error`` is an ``EngineDied`` and nothing
        has been sent to the client yet, it calls ``ModelAccess.give_back``; otherwise it answers ``error``, or ends the
        stream with it. ``ModelAccess.end`` is not called after a revocation.
        """

    def frozen(self) -> None:
        """The request is being suspended with its engine. More of its answer may still arrive, even the end.

        What has not been sent to the engine must not be sent before ``thawed``.
        """

    def held(self) -> None:
        """A frozen request's engine is about to be woken: none of its bytes may reach the client before ``thawed``."""

    def thawed(self) -> None:
        """A frozen request resumes."""

    def progress(self) -> Progress | None:
        """How far the answer is; None while nothing is read from the engine, for a reason that is not its own."""


class ModelAccess(Protocol):
    """The runtime's side: where the gateway asks for leases and ends them."""

    @property
    def names(self) -> Register:
        """Every name by which clients can ask for a model. Requests carry the model's key."""

    def acquire(self, request: Request, holder: RequestHolder) -> None:
        """Ask for a lease. ``holder`` may be called back before this returns."""

    def cancel(self, request: Request) -> None:
        """The client left while the request was waiting; idempotent, no call follows."""

    def outlook(self, request: Request) -> Outlook | None:
        """What the client of a request that waits for its lease can be told; None where there is nothing."""

    def first_token(self, request: Request) -> None:
        """The first token of an answer that is a stream has arrived."""

    def end(self, request: Request, outcome: Outcome) -> None:
        """The request is over, and its connection to the engine closed or idle. A second call does nothing."""

    def give_back(self, request: Request, holder: RequestHolder, reason: str) -> None:
        """The engine was lost before any of its answer was sent on: find out whether it lives, then try again.

        ``holder`` is called back exactly once more: ``admitted`` again, or ``rejected``.
        """

    def confirm_alive(self, request: Request, report: Callable[[bool], None]) -> None:
        """Report whether the engine lives on after a 5xx or broken answer: two checks of /health, at most 550 ms."""
