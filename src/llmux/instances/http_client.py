"""The HTTP client of control calls, which is aiohttp's. ``ControlSession`` imports this module when it is needed."""

import errno
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import aiohttp

from llmux.access import Upstream


class HttpClient:
    """Opens connections to engines and sends calls. To be made in a running event loop, and closed."""

    errors = (aiohttp.ClientError, OSError)
    """What ``send`` raises beside TimeoutError."""

    def __init__(self) -> None:
        self._shared = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))

    async def close(self) -> None:
        """Close the connections that no caller of ``keeping`` has to close."""
        await self._shared.close()

    def keeping(self, upstream: Upstream) -> aiohttp.ClientSession:
        """A session that keeps its connections to an engine, to be closed by the caller."""
        path, seconds = upstream.socket_path, upstream.keep_alive_seconds
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=seconds)
            if path is None
            else aiohttp.UnixConnector(path, limit=0, keepalive_timeout=seconds)
        )

    def apart(self, upstream: Upstream) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
        """A session that keeps no connection."""
        if upstream.socket_path is None:
            return nullcontext(self._shared)
        # aiohttp binds a session to one socket, and each start of an engine has another one.
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(upstream.socket_path, force_close=True))

    async def send(
        self,
        session: aiohttp.ClientSession,
        upstream: Upstream,
        method: str,
        path: str,
        document: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        timeout_seconds: float,
    ) -> tuple[int, bytes]:
        """Make a call once; returns the status and the body. Raises TimeoutError, and ``errors``."""
        remote = upstream.remote
        async with session.request(
            method,
            upstream.url_of(path),
            json=document,
            headers=headers,
            # The key goes where the configuration says, and nowhere else.
            allow_redirects=remote is None,
            ssl=True if remote is None or remote.tls is None else remote.tls,
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
        ) as response:
            return response.status, await response.read()

    def is_closed(self, error: Exception) -> bool:
        """Whether a connection was found to be closed before any of an answer had come."""
        reset = isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)
        return reset or isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)
