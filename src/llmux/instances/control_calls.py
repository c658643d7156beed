"""Calls to an engine's own endpoints, outside the data path: each has a time limit, each failure its reason."""

import asyncio
import errno
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp

from llmux.access import KEEP_ALIVE_SECONDS, Upstream
from llmux.errors import ControlCallFailed
from llmux.hosts.local import LOOPBACK
from llmux.os_errors import is_own_shortage

BODY_SHOWN_BYTES = 2000
SHORTAGE_SECONDS = 5.0
"""How long a call is tried again while llmux lacks file descriptors: after a failed one the engine may be stopped."""
SHORTAGE_POLL_SECONDS = 0.05


def new_control_session() -> aiohttp.ClientSession:
    """A session for calls to engines whose connections are not kept, to be closed by the caller."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


class EngineEndpoints:
    """The endpoints of one model's engine, and the only record of the address it listens on."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
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
        self._kept: aiohttp.ClientSession | None = None

    @classmethod
    def of(
        cls, session: aiohttp.ClientSession, upstream: Upstream, *, redact: Callable[[str], str] = str
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
        if self._kept is not None:
            return
        path, seconds = self.upstream.socket_path, self.upstream.keep_alive_seconds
        self._kept = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=seconds)
            if path is None
            else aiohttp.UnixConnector(path, limit=0, keepalive_timeout=seconds)
        )

    async def close_connections(self) -> None:
        """Before the engine is stopped, or dumped: a connection that is open meanwhile would be in the image."""
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
        give_up_at = monotonic() + min(timeout_seconds, SHORTAGE_SECONDS)
        while True:
            is_kept = self._kept is not None and not apart
            try:
                status, body = await self._send(method, path, document, timeout_seconds, apart=apart)
                break
            except TimeoutError:
                raise ControlCallFailed(call, f"no answer within {timeout_seconds:g} s", is_timeout=True) from None
            except (aiohttp.ClientError, OSError) as error:
                if is_kept and _is_closed(error):
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

    async def _send(
        self, method: str, path: str, document: Mapping[str, Any] | None, timeout_seconds: float, *, apart: bool
    ) -> tuple[int, bytes]:
        remote = self.upstream.remote
        async with (
            self._session_of_upstream(apart=apart) as session,
            session.request(
                method,
                self.upstream.url_of(path),
                json=document,
                headers=self._headers,
                # The key goes where the configuration says, and nowhere else.
                allow_redirects=remote is None,
                ssl=True if remote is None or remote.tls is None else remote.tls,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            ) as response,
        ):
            return response.status, await response.read()

    def _session_of_upstream(self, *, apart: bool) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
        if self._kept is not None and not apart:
            return nullcontext(self._kept)
        path = self.upstream.socket_path
        if path is None:
            return nullcontext(self._session)
        # aiohttp binds a session to one socket, and each start of an engine has another one.
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(path, force_close=True))

    def _shown(self, body: bytes) -> str:
        # More than is shown is redacted, so that a secret is not cut in two before.
        text = self._redact(body[: 2 * BODY_SHOWN_BYTES].decode(errors="replace"))
        return text if len(body) <= BODY_SHOWN_BYTES else f"{text[:BODY_SHOWN_BYTES]}... [{len(body)} bytes]"


def _is_closed(error: aiohttp.ClientError | OSError) -> bool:
    """Whether a connection was found to be closed before any of an answer had come."""
    reset = isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)
    return reset or isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)


def _document(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None
