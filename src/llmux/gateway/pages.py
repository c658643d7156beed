"""What web pages may do: CORS for those that are allowed, and a guard against all others where no key is needed.

A browser lets any page send simple requests to this machine, which could switch models, and a page whose name is made
to point here (DNS rebinding) could read the answers. Neither can happen to a server that asks for a key.
"""

import re
from collections.abc import Collection
from functools import lru_cache

from llmux.errors import RequestError
from llmux.gateway.errors import HostNotAllowed, OriginNotAllowed
from llmux.gateway.http.request_head import RequestHead
from llmux.host_names import is_address, is_loopback, split_host

_EXPOSED = b"x-request-id, x-llmux-queue-ms, x-llmux-switch-ms, x-llmux-forecast-ms, x-llmux-error, retry-after"
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_PREFLIGHT = re.compile(rb"(?:^|\r\n)access-control-request-method:", re.IGNORECASE)
_REQUESTED_HEADERS = re.compile(
    rb"(?:^|\r\n)access-control-request-headers:[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z, \t-]*)\r\n", re.IGNORECASE
)
_PRIVATE_NETWORK = re.compile(rb"(?:^|\r\n)access-control-request-private-network:[ \t]*true", re.IGNORECASE)
_ENGINES_OWN = re.compile(rb"(?:^|(?<=\r\n))access-control-[a-z-]+:[^\r\n]*\r\n", re.IGNORECASE)
_PROGRAMS = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://", "capacitor://")
"""Origins of programs on this machine. No page from elsewhere can have one of these schemes."""
_LOCAL_DOMAINS = (".localhost", ".internal")
"""No name of these can be had in the DNS: a container reaches its host as host.docker.internal."""


def without_cors(fields: bytes) -> bytes:
    """An answer's header lines without those about CORS: llmux sends its own."""
    return _ENGINES_OWN.sub(b"", fields)


class PagePolicy:
    """Which pages may use the data plane."""

    def __init__(self, cors_origins: Collection[str], allowed_hosts: Collection[str] | None) -> None:
        """``allowed_hosts`` are names of this machine beside its own; None: pages are not guarded against."""
        self._any_origin = "*" in cors_origins
        self._origins = frozenset(origin.lower().removesuffix("/") for origin in cors_origins)
        self._guards = allowed_hosts is not None
        self._hosts = frozenset(host.lower() for host in allowed_hosts or ())
        # Of one server's clients most send the same few hosts.
        self._is_own_host = lru_cache(maxsize=256)(self._names_this_machine)

    @property
    def does_anything(self) -> bool:
        """Whether there is any need to ask this policy."""
        return self._guards or bool(self._origins)

    def fields_for(self, origin: bytes | None) -> bytes:
        """The header lines about CORS that every answer to a page of this origin gets."""
        if origin is None or not self._origins:
            return b""
        if self._any_origin:
            return b"access-control-allow-origin: *\r\naccess-control-expose-headers: " + _EXPOSED + b"\r\n"
        if not self._is_allowed(origin.decode("latin-1")):
            return b"vary: Origin\r\n"
        allow = b"access-control-allow-origin: " + origin + b"\r\nvary: Origin\r\n"
        return allow + b"access-control-expose-headers: " + _EXPOSED + b"\r\n"

    def preflight_fields(self, head: RequestHead) -> bytes | None:
        """The header lines of the answer to a preflight; None if the request is none, or CORS is not configured."""
        if not self._origins or head.method != b"OPTIONS" or head.origin is None:
            return None
        if head.content_length or head.chunked or not _PREFLIGHT.search(head.forwarded):
            return None
        fields = self.fields_for(head.origin)
        if b"allow-origin" in fields:
            fields += b"access-control-allow-methods: " + _METHODS + b"\r\naccess-control-max-age: 600\r\n"
            requested = _REQUESTED_HEADERS.search(head.forwarded)
            if requested is not None:
                fields += b"access-control-allow-headers: " + requested[1].strip() + b"\r\n"
            if _PRIVATE_NETWORK.search(head.forwarded):
                fields += b"access-control-allow-private-network: true\r\n"
        return fields

    def refusal(
        self, host: bytes | None, origin: bytes | None, fetch_site: bytes | None, own_address: object
    ) -> RequestError | None:
        """Why a request is not served, if it comes from a foreign page to ``own_address``, a socket's name.

        Other machines cannot be fooled into sending requests to loopback, so that only there pages are guarded against.
        """
        if not self._guards or not (isinstance(own_address, tuple) and is_loopback(str(own_address[0]))):
            return None
        if host is not None and not self._is_own_host(host):
            return HostNotAllowed(host.decode("latin-1"))
        if origin is not None:
            text = origin.decode("latin-1")
            if not self._is_known(text, host):
                return OriginNotAllowed(text)
        elif fetch_site is not None and fetch_site.strip().lower() == b"cross-site":
            return OriginNotAllowed("another site")
        return None

    def _is_allowed(self, origin: str) -> bool:
        return self._any_origin or origin.lower() in self._origins

    def _is_known(self, origin: str, host: bytes | None) -> bool:
        if self._is_allowed(origin) or origin.lower().startswith(_PROGRAMS):
            return True
        theirs = split_host(origin)
        if theirs is None:
            return False
        ours = split_host("//" + host.decode("latin-1")) if host is not None else None
        name = theirs[0]
        is_local = name == "localhost" or name.endswith(".localhost") or is_loopback(name)
        return is_local or (ours is not None and ours[0] == name)

    def _names_this_machine(self, host: bytes) -> bool:
        split = split_host("//" + host.decode("latin-1"))
        if split is None:
            return False
        name = split[0].rstrip(".")
        return name == "localhost" or name in self._hosts or is_address(name) or name.endswith(_LOCAL_DOMAINS)
