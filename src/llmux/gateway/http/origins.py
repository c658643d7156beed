"""Host and Origin headers: whether they are valid, what they name, and whether that is this machine.

All of it is strict. What browsers make of a reference in an engine's answer is another matter: ``engine_addresses.py``.
"""

import ipaddress
import re
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}

_MAX_HOST_BYTES = 512
"""Names in the DNS have at most 253 characters."""
_HOST = re.compile(rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?")
"""RFC 9110, 7.2 with RFC 3986, 3.2.2. An empty one, which is for targets without an authority, is refused, as by
nginx: no client of llmux has such a target."""


def is_valid_host(host: bytes) -> bool:
    """Whether it is a host, or a host and a port."""
    match = _HOST.fullmatch(host) if len(host) <= _MAX_HOST_BYTES else None
    if match is None:
        return False
    if match["ipv6"] is not None:
        try:
            ipaddress.IPv6Address(match["ipv6"].decode())
        except ValueError:
            return False
    return True


def is_loopback(address: str) -> bool:
    """Whether an IP address is one of this machine alone; False for names."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def is_address(host: str) -> bool:
    """Whether a host is written as an IP address, which no DNS server can turn into another one."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_local_name(host: str) -> bool:
    """Whether a Host header names this machine."""
    split = split_host(f"//{host}")
    return split is not None and (split[0] == "localhost" or is_loopback(split[0]))


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin is the one that is called as ``host``."""
    default = DEFAULT_PORTS.get(origin.partition("://")[0].lower())
    theirs, ours = split_host(origin), split_host(f"//{host}")
    if default is None or theirs is None or ours is None:
        return False
    return theirs[0] == ours[0] and (theirs[1] or default) == (ours[1] or default)


def split_host(url: str) -> tuple[str, int | None] | None:
    """Host (lower case, without brackets) and port of a URL. None if it is invalid or has any other part."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        return None
    return name, port
