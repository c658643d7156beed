"""Addresses in the heads of engines' answers. A client that followed one would leave llmux, and its lease, behind.

They are read as leniently as browsers read them.
"""

import re
import socket
from dataclasses import dataclass

from llmux.access import Remote
from llmux.host_names import parse_ip_leniently, split_leniently

FIELDS = frozenset((b"location", b"content-location", b"link", b"refresh"))
"""Headers whose values are, or contain, references that a client follows."""

_LINE = re.compile(rb"(?i)(?:location|content-location|link|refresh):")
_BEFORE_AUTHORITY = rb"(?:(?<![a-z0-9+.-])(?:https?|wss?|ftp):[/\\]*|(?<![^\s<>=\"',;])[/\\]{2,})"
_AUTHORITY = re.compile(rb"(?i)" + _BEFORE_AUTHORITY + rb"([^/\\?#\s<>\"',;]*)")
"""As browsers read it: any number of slashes after the scheme, and a backslash is a slash."""
_PATH = re.compile(rb"(?i)(\A\s*|<|\burl\s*=\s*[\"']?)(?=/(?![/\\]))")
"""Where a reference begins that is a path."""
_REFERENCE = re.compile(
    rb"(?i)(?P<before>\A\s*|<|\burl\s*=\s*[\"']?)"
    rb"(?:(?P<scheme>https?:|)//(?P<authority>[^/\\?#\s<>\"',;]*)|(?=/))"
    rb"(?P<path>[^\s<>\"',;]*)"
)
"""A whole reference, absolute or from the root: its authority, if it has one, and what follows."""
_LOCAL_NAMES = frozenset(("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"))
_DEFAULT_PORT = "80"


class AddressExposed(Exception):
    """A header names an address of this machine that cannot be replaced by a path of llmux's."""

    def __init__(self, line: bytes) -> None:
        name = line.partition(b":")[0].decode("latin-1")
        super().__init__(f"the header {name} of its answer names an address that only llmux may use")


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """What an engine's references to itself look like. ``port`` is None for an engine on a Unix socket."""

    host_header: bytes
    port: int | None

    def hide(self, fields: bytes, prefix: bytes) -> bytes:
        """The header lines with every reference to the engine as a path, behind ``prefix``; raises AddressExposed.

        ``prefix`` is the ``/upstream/MODEL`` by which the client reached the engine, or empty.
        """
        lines = fields.split(b"\r\n")
        return b"\r\n".join(self._hide_in(line, prefix) if _LINE.match(line) else line for line in lines)

    def _hide_in(self, line: bytes, prefix: bytes) -> bytes:
        name, _, value = line.partition(b":")
        value = value.replace(b"\t", b"")  # Browsers ignore it, even within the scheme.

        def absolute(match: re.Match[bytes]) -> bytes:
            return match[0] if _begins_with(value, prefix, match.end()) else match[0] + prefix

        def relative(match: re.Match[bytes]) -> bytes:
            if not self._is_own(match[1], line):
                return match[0]
            rest = value[match.end() : match.end() + 2]
            if rest[:1] == b"\\" or rest[1:] in (b"/", b"\\"):
                # What is left would be read as another host.
                raise AddressExposed(line)
            behind = b"" if _begins_with(value, prefix, match.end()) else prefix
            return behind if rest[:1] == b"/" else behind + b"/"

        if prefix:
            value = _PATH.sub(absolute, value)
        value = _AUTHORITY.sub(relative, value)
        if self.port is not None and self.host_header in value.lower():
            raise AddressExposed(line)
        return name + b":" + value

    def _is_own(self, authority: bytes, line: bytes) -> bool:
        host, port = split_leniently(authority)
        address = parse_ip_leniently(host)
        if host in _LOCAL_NAMES or host.endswith(".localhost"):
            is_loopback = True
        else:
            is_loopback = address is not None and (address.is_loopback or address.is_unspecified)
        is_own_port = self.port is not None and port == str(self.port)
        if is_loopback:
            if not is_own_port and port not in ("", _DEFAULT_PORT):
                # Another server of this machine, an engine perhaps: no path of llmux's leads there.
                raise AddressExposed(line)
            return True
        return is_own_port and (address is not None or host == socket.gethostname().lower())


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """What the references of a server elsewhere to itself look like; all others are the client's to follow."""

    host: str
    port: int
    remote: Remote

    def hide(self, fields: bytes, prefix: bytes) -> bytes:
        """The header lines with every reference to the server as a path of llmux's, behind ``prefix``."""
        lines = fields.split(b"\r\n")
        return b"\r\n".join(self._hide_in(line, prefix) if _LINE.match(line) else line for line in lines)

    def _hide_in(self, line: bytes, prefix: bytes) -> bytes:
        name, _, value = line.partition(b":")
        # The path's end is found, too: what stands before it is another one at the server's than here.
        value = _REFERENCE.sub(lambda match: self._own_path(match, prefix), value.replace(b"\t", b""))
        return name + b":" + value

    def _own_path(self, match: re.Match[bytes], prefix: bytes) -> bytes:
        before, authority, path = match["before"], match["authority"], match["path"]
        if authority is not None and not self._is_own(match["scheme"], authority):
            return match[0]
        own = self.remote.split(path.decode("latin-1")).encode("latin-1")
        return before + prefix + (own if own.startswith(b"/") else b"/" + own)

    def _is_own(self, scheme: bytes, authority: bytes) -> bool:
        host, port = split_leniently(authority)
        # Without a scheme it is that of the request; a redirect from http to https leads to the same server.
        is_https = scheme.lower() == b"https:" if scheme else self.remote.tls is not None
        own_ports = {"80", "443"} if self.port in (80, 443) else {str(self.port)}
        own_authority = f"[{self.host}]" if ":" in self.host else self.host
        own_host, _ = split_leniently(own_authority.encode())
        return host == own_host and (port or ("443" if is_https else "80")) in own_ports


def _begins_with(value: bytes, prefix: bytes, position: int) -> bool:
    """Whether the engine has written the prefix itself, as one with ``--root-path`` does."""
    return bool(prefix) and value.startswith(prefix + b"/", position)
