"""Who may use the control API: whoever has the admin key, or, while there is none, programs on this machine.

The checks of Host and Origin keep a web page, which the operator's own browser shows, from reaching a loopback port.
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
class Refused:
    """Why somebody may not: 401 where a key would help, 403 where the way the request came is the fault."""

    status: int
    reason: str


def check_access(headers: MultiMapping[str], peer: str | None, admin_key: str | None) -> Refused | None:
    """None if the request may go on."""
    return _check_local(headers, peer) if admin_key is None else _check_key(headers, admin_key)


def _check_key(headers: MultiMapping[str], admin_key: str) -> Refused | None:
    shown = headers.getall("X-Api-Key", [])
    for value in headers.getall("Authorization", []):
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() == "bearer":
            shown = [*shown, credentials.strip()]
    if not shown:
        return Refused(
            401, "the control API needs the admin_key: send it as 'Authorization: Bearer KEY' or 'x-api-key'"
        )
    expected = admin_key.encode()
    if any(hmac.compare_digest(key.encode("utf-8", "surrogateescape"), expected) for key in shown):
        return None
    return Refused(401, "this is not the admin_key: send the one in the configuration as 'Authorization: Bearer KEY'")


def _check_local(headers: MultiMapping[str], peer: str | None) -> Refused | None:
    if peer is None or not _is_loopback(peer):
        return Refused(403, f"without an admin_key the control API answers this machine only; {_REMEDY}")
    forwarded = next((name for name in headers if _tells_of_proxy(name.lower())), None)
    if forwarded is not None:
        return Refused(403, f"the header {forwarded} says that the request came through a proxy; {_REMEDY}")
    hosts = headers.getall("Host", [])
    if len(hosts) != 1 or not _is_local_name(hosts[0]):
        return Refused(403, f"the Host header must name this machine, as localhost or 127.0.0.1 do; or {_REMEDY}")
    if any(not _is_same_origin(origin, hosts[0]) for origin in headers.getall("Origin", [])):
        return Refused(403, f"the request comes from a page of another origin; use a program instead, or {_REMEDY}")
    return None


def _tells_of_proxy(name: str) -> bool:
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
    """Host (lower case, no brackets) and port of a URL; None if it is none, or says more than these."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        return None
    return name, port
