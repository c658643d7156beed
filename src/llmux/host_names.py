"""Names and addresses of hosts: in Host and Origin headers, in URLs, in the configuration, and in engines' answers.

All of it is strict, as servers read them, but for the functions that say *leniently*: as browsers read a reference.
"""

import ipaddress
import re
import socket
import unicodedata
from urllib.parse import unquote_to_bytes, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}

_MAX_HOST_BYTES = 512
"""Names in the DNS have at most 253 characters."""
_HOST = re.compile(rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?")
"""RFC 9110, 7.2 with RFC 3986, 3.2.2. An empty one, which is for targets without an authority, is refused, as by
nginx: no client of llmux has such a target."""
_NAME = re.compile(r"(?=.{1,253}$)\w(?:[\w-]{0,61}\w)?(?:\.\w(?:[\w-]{0,61}\w)?)*\.?")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_valid_host(host: bytes) -> bool:
    """Whether the value of a Host header is a host, or a host and a port."""
    match = _HOST.fullmatch(host) if len(host) <= _MAX_HOST_BYTES else None
    if match is None:
        return False
    return match["ipv6"] is None or isinstance(parse_ip(match["ipv6"].decode()), ipaddress.IPv6Address)


def is_name(text: str) -> bool:
    """Whether it can be a host's name, in the DNS or elsewhere, also one with letters that the DNS has not."""
    return _NAME.fullmatch(text) is not None


def parse_ip(text: str) -> IpAddress | None:
    """The IP address, without brackets; one of IPv6 may have a zone. None if it is a name, or nothing."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_address(host: str) -> bool:
    """Whether a host is written as an IP address, which no DNS server can turn into another one."""
    return parse_ip(host) is not None


def is_loopback(address: str) -> bool:
    """Whether an IP address is one of this machine alone; False for names."""
    parsed = parse_ip(address)
    return parsed is not None and _unmapped(parsed).is_loopback


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


def host_of(url: str) -> tuple[str, int | None] | None:
    """Host (lower case, without brackets) and port of a URL, whatever else it has. None if it has no valid host."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (name, port) if name else None


def split_host(url: str) -> tuple[str, int | None] | None:
    """As ``host_of``, of a URL that has no other part but a scheme; None for any other."""
    found = host_of(url)
    if found is None:
        return None
    parts = urlsplit(url)
    return None if "@" in parts.netloc or parts.path or parts.query or parts.fragment else found


def split_leniently(authority: bytes) -> tuple[str, str]:
    """The host, in one spelling of the many that browsers take for the same, and the port."""
    text = unquote_to_bytes(authority.rpartition(b"@")[2]).decode("utf-8", "replace")
    text = unicodedata.normalize("NFKC", text).replace("\u3002", ".").lower()
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, ""
    return host.rstrip("."), port.lstrip("0")


def parse_ip_leniently(host: str) -> IpAddress | None:
    """The address that browsers take a host for, in brackets if it is IPv6: they know 127.1 and 0x7f000001 too."""
    if host.startswith("["):
        parsed = parse_ip(host.strip("[]").partition("%")[0])
        return _unmapped(parsed) if isinstance(parsed, ipaddress.IPv6Address) else None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _unmapped(address: IpAddress) -> IpAddress:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
