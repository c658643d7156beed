"""Where an engine that llmux does not start is reached."""

import ssl
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

from llmux.access import Remote, Upstream
from llmux.engines.urls import ServerUrl

OnLeaving: TypeAlias = Callable[[Upstream], None]
"""Called before an engine leaves, so that connections to it can be closed."""


def upstream_of(url: ServerUrl, api_key: str | None, *, is_ours: bool) -> Upstream:
    """The server at a URL. ``is_ours``: on loopback it is an engine like those that llmux starts."""
    if is_ours and url.is_loopback and not url.is_https and not url.base_path:
        return Upstream(url.host, url.port, api_key)
    remote = Remote(verifying_tls() if url.is_https else None, url.base_path)
    return Upstream(url.host, url.port, api_key, remote=remote)


@cache
def verifying_tls() -> ssl.SSLContext:
    """Verifies certificates and names by the system's authorities, or by those that ``SSL_CERT_FILE`` names.

    Reading them takes tens of milliseconds.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
