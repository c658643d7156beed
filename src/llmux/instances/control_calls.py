"""Calls to an engine's own endpoints, outside the data path: each has a time limit, each failure its reason."""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from llmux.access import KEEP_ALIVE_SECONDS, Upstream
from llmux.errors import ControlCallFailed
from llmux.hosts.local import LOOPBACK
from llmux.os_errors import is_own_shortage

if TYPE_CHECKING:
    import aiohttp

    from llmux.instances.http_client import HttpClient

BODY_SHOWN_BYTES = 2000
SHORTAGE_SECONDS = 5.0
"""How long a call is tried again while llmux lacks file descriptors: after a failed one the engine may be stopped."""
SHORTAGE_POLL_SECONDS = 0.05


class ControlSession:
    """What the calls to all engines share. An asynchronous context manager.

    The HTTP client is imported at the first call, or by ``load``: that takes as long as a fifth of all other imports,
    and llmux listens before it calls any engine.
    """

    def __init__(self) -> None:
        self._client: HttpClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()

    async def load(self) -> "HttpClient":
        """The client; imported in a thread, if it is not yet. Raises OSError."""
        return self._client or self._open(await asyncio.to_thread(_import_client))

    def _open(self, made: "type[HttpClient]") -> "HttpClient":
        # Two calls may have waited for the import.
        if self._client is None:
            self._client = made()
        return self._client


def _import_client() -> "type[HttpClient]":
    from llmux.instances.http_client import HttpClient

    return HttpClient


class EngineEndpoints:
    """The endpoints of one model's engine, and the only record of the address it listens on."""

    def __init__(
        self,
        session: ControlSession,
        port: int,
        api_key: str | None = None,
        *,
        redact: Callable[[str], str] = str,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        removed_headers: frozenset[str] = frozenset(),
    ) -> None:
        """``redact`` takes secrets out of what the engine says in an error."""
        self.upstream = Upstream(
            LOOPBACK, port, api_key, keep_alive_seconds=keep_alive_seconds, removed_headers=removed_headers
        )
        self._session = session
        self._redact = redact
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._is_keeping = False
        self._kept: aiohttp.ClientSession | None = None

    @classmethod
    def of(
        cls, session: ControlSession, upstream: Upstream, *, redact: Callable[[str], str] = str
    ) -> "EngineEndpoints":
        """The endpoints of an engine that llmux does not start."""
        endpoints = cls(session, upstream.port, upstream.api_key, redact=redact)
        endpoints.upstream = upstream
        return endpoints

    def move_to(self, port: int) -> None:
        """Use another port from now on: an engine that was restored listens where it did when it was dumped."""
        if port != self.upstream.port or self.upstream.socket_path is not None:
            self.upstream = replace(self.upstream, port=port, socket_path=None)

    def move_to_socket(self, path: Path) -> None:
        """Use a Unix socket from now on."""
        self.upstream = replace(self.upstream, socket_path=str(path))

    def keep_connections(self) -> None:
        """From now on a connection is kept for the next call. The engine runs, and its address does not change."""
        self._is_keeping = True

    async def close_connections(self) -> None:
        """Before the engine is stopped, or dumped: a connection that is open meanwhile would be in the image."""
        self._is_keeping = False
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.close()

    def at_port(self) -> "EngineEndpoints":
        """The same, but on the port, whatever is in use now."""
        return EngineEndpoints(self._session, self.upstream.port, self.upstream.api_key, redact=self._redact)

    async def get(self, path: str, timeout_seconds: float) -> Any:
        """GET; returns the JSON document, or None if the body is not JSON. Raises ControlCallFailed."""
        return await self._call("GET", path, None, timeout_seconds)

    async def get_apart(self, path: str, timeout_seconds: float) -> Any:
        """As ``get``, on a connection of its own: for what asks while the engine may be leaving or coming back."""
        return await self._call("GET", path, None, timeout_seconds, apart=True)

    async def post(self, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None) -> Any:
        """POST, without a body unless there is a ``document``; returns and raises as ``get``."""
        return await self._call("POST", path, document, timeout_seconds)

    async def request(
        self, method: str, path: str, timeout_seconds: float, document: Mapping[str, Any] | None = None
    ) -> Any:
        """Any method, with a body if there is a ``document``; returns and raises as ``get``."""
        return await self._call(method, path, document, timeout_seconds)

    async def _call(
        self,
        method: str,
        path: str,
        document: Mapping[str, Any] | None,
        timeout_seconds: float,
        *,
        apart: bool = False,
    ) -> Any:
        call = f"{method} {path}"
        try:
            client = await self._session.load()
        except OSError as error:
            raise ControlCallFailed(call, f"{type(error).__name__}: {error}") from error
        give_up_at = monotonic() + min(timeout_seconds, SHORTAGE_SECONDS)
        while True:
            is_kept = self._is_keeping and not apart
            try:
                async with self._session_of_upstream(client, apart=apart) as session:
                    status, body = await client.send(
                        session, self.upstream, method, path, document, self._headers, timeout_seconds
                    )
                break
            except TimeoutError:
                raise ControlCallFailed(call, f"no answer within {timeout_seconds:g} s", is_timeout=True) from None
            except client.errors as error:
                if is_kept and client.is_closed(error):
                    # The engine has closed it just as the call was sent, most likely, and not read the call. Even if it
                    # has: one that is made twice leaves the engine where one would, and aiohttp repeats no POST.
                    apart = True
                    continue
                if not is_own_shortage(error) or monotonic() >= give_up_at:
                    raise ControlCallFailed(call, f"{type(error).__name__}: {error}") from error
            # No connection could be opened, so nothing has been sent.
            await asyncio.sleep(SHORTAGE_POLL_SECONDS)
        if not 200 <= status < 300:
            raise ControlCallFailed(call, f"status {status}: {self._shown(body)}", status)
        return _document(body)

    def _session_of_upstream(
        self, client: "HttpClient", *, apart: bool
    ) -> "AbstractAsyncContextManager[aiohttp.ClientSession]":
        if apart or not self._is_keeping:
            return client.apart(self.upstream)
        if self._kept is None:
            self._kept = client.keeping(self.upstream)
        return nullcontext(self._kept)

    def _shown(self, body: bytes) -> str:
        # More than is shown is redacted, so that a secret is not cut in two before.
        text = self._redact(body[: 2 * BODY_SHOWN_BYTES].decode(errors="replace"))
        return text if len(body) <= BODY_SHOWN_BYTES else f"{text[:BODY_SHOWN_BYTES]}... [{len(body)} bytes]"


def _document(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None
