"""Who may use the control API: clients with the admin key or, if none is configured, programs on this machine.

A loopback peer alone would not be enough: the operator's browser runs on this machine too, and a web page could send
requests to a loopback port. A foreign page is recognized by its Origin, and DNS rebinding by the Host header.
"""

import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from multidict import MultiMapping

_FORWARDED = ("forwarded", "x-real-ip")
_FORWARDED_PREFIX = "x-forwarded-"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_REMEDY = "set admin_key in the configuration and send it as 'Authorization: Bearer KEY'"


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a request is denied. The status is 401 if a key would help, and 403 if it came a way that is not allowed."""

    status: int
    reason: str


def check_access(headers: MultiMapping[str], peer: str | None, admin_key: str | None) -> Denied | None:
    """None if the request is allowed. ``peer`` is the client's address, None if it is unknown."""
    return _check_local(headers, peer) if admin_key is None else _check_key(headers, admin_key)


def _check_key(headers: MultiMapping[str], admin_key: str) -> Denied | None:
    presented = headers.getall("X-Api-Key", [])
    for value in headers.getall("Authorization", []):
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() == "bearer":
            presented = [*presented, credentials.strip()]
    if not presented:
        return Denied(401, "the control API needs the admin_key: send it as 'Authorization: Bearer KEY' or 'x-api-key'")
    expected = admin_key.encode()
    if any(hmac.compare_digest(key.encode("utf-8", "surrogateescape"), expected) for key in presented):
        return None
    return Denied(401, "this is not the admin_key: send the one in the configuration as 'Authorization: Bearer KEY'")


def _check_local(headers: MultiMapping[str], peer: str | None) -> Denied | None:
    if peer is None or not _is_loopback(peer):
        return Denied(403, f"without an admin_key the control API answers this machine only; {_REMEDY}")
    forwarded = next((name for name in headers if _is_from_proxy(name.lower())), None)
    if forwarded is not None:
        return Denied(403, f"the header {forwarded} says that the request came through a proxy; {_REMEDY}")
    hosts = headers.getall("Host", [])
    if len(hosts) != 1 or not _is_local_name(hosts[0]):
        return Denied(403, f"the Host header must name this machine, as localhost or 127.0.0.1 do; or {_REMEDY}")
    if any(not _is_same_origin(origin, hosts[0]) for origin in headers.getall("Origin", [])):
        return Denied(403, f"the request comes from a page of another origin; use a program instead, or {_REMEDY}")
    return None


def _is_from_proxy(name: str) -> bool:
    return name in _FORWARDED or name.startswith(_FORWARDED_PREFIX)


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def _is_local_name(host: str) -> bool:
    split = _split_host(f"//{host}")
    return split is not None and (split[0] == "localhost" or _is_loopback(split[0]))


def _is_same_origin(origin: str, host: str) -> bool:
    default = _DEFAULT_PORTS.get(origin.partition("://")[0].lower())
    theirs, ours = _split_host(origin), _split_host(f"//{host}")
    if default is None or theirs is None or ours is None:
        return False
    return theirs[0] == ours[0] and (theirs[1] or default) == (ours[1] or default)


def _split_host(url: str) -> tuple[str, int | None] | None:
    """Host (lower case, without brackets) and port of a URL. None if it is invalid or has any other part."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        return None
    return name, port
