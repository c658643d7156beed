"""URLs of servers that llmux does not start, as the configuration gives them."""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

from llmux import host_names

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*\.?")
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")
_ENDPOINT = re.compile(r"/(?:chat/completions|completions|embeddings|responses|messages|models|health)$")
_SECRET = re.compile(r"key|token|secret|passw", re.IGNORECASE)
_EXAMPLE = "write it as http://127.0.0.1:8080 or https://api.example.org/v1"


class WrongUrl(ValueError):
    """A URL that cannot be used. Neither text contains a part of it that may be a secret."""

    def __init__(self, message: str, remedy: str = _EXAMPLE) -> None:
        self.remedy = remedy
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """The parts of a URL; ``base_path`` is empty or begins with a slash, and does not end with one."""

    is_https: bool
    host: str
    """A name in lower case, or an address without brackets."""
    port: int
    base_path: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine, and cannot be heard outside of it."""
        return host_names.is_loopback(self.host) or self.host == "localhost" or self.host.endswith(".localhost")

    def __str__(self) -> str:
        scheme, default_port = ("https", 443) if self.is_https else ("http", 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == default_port else f":{self.port}"
        return f"{scheme}://{host}{port}{self.base_path}"


def parse_url(text: str) -> ServerUrl:
    """Read a URL; raises WrongUrl."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise WrongUrl("contains a character that no URL has", "write names in their ASCII form, and %20 for a blank")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise WrongUrl("is not a URL") from None
    _refuse_secrets(parts)
    scheme = parts.scheme
    if scheme not in ("http", "https"):
        raise WrongUrl("must begin with http:// or https://")
    host = (parts.hostname or "").lower()
    if not host:
        raise WrongUrl("names no host")
    if not _is_host(host):
        raise WrongUrl(f"{host!r} is neither an address nor the name of a host")
    if port == 0:
        raise WrongUrl("has the port 0, on which nothing can listen")
    if parts.query or parts.fragment:
        raise WrongUrl("has a query or a fragment", "end it with its path")
    path = parts.path.rstrip("/")
    if not _PATH.fullmatch(path):
        raise WrongUrl("has a path that requests cannot have")
    port = port or host_names.DEFAULT_PORTS[scheme]
    if endpoint := _ENDPOINT.search(path):
        remedy = f"write {ServerUrl(scheme == 'https', host, port, path[: endpoint.start()])}"
        raise WrongUrl("names one endpoint instead of the server", remedy)
    return ServerUrl(scheme == "https", host, port, path)


def _refuse_secrets(parts: SplitResult) -> None:
    if "@" in parts.netloc:
        raise WrongUrl("contains a user or a password, which logs would show", "put the key into api_key")
    if any(_SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise WrongUrl("contains a key, which logs would show", "put it into api_key")


def _is_host(host: str) -> bool:
    is_name = bool(_HOST_NAME.fullmatch(host)) and not re.fullmatch(r"[0-9.]+", host)
    return is_name or host_names.is_address(host)
