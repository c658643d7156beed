"""The head of a client's request: validated by llhttp, its fields read, dropped or kept."""

import re

import httptools

from llmux.engines.paths import MediaType
from llmux.gateway.errors import MalformedRequest, TooManyHeaders, UnsupportedEncoding, UpgradeRefused
from llmux.gateway.http.chunks import FramingError
from llmux.gateway.http.head_buffer import require_beginning
from llmux.gateway.http.media_types import media_type
from llmux.gateway.http.repeated_head import RepeatedHead
from llmux.host_names import is_valid_host

_NOT_FORWARDED = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
        b"cookie",
        b"api-key",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"x-api-key",
        b"model-override",
        b"expect",
        b"x-request-id",
        b"x-llmux-keep-alive",
        b"x-llmux-priority",
    )
)
"""Fields of one hop, credentials, and what llmux writes itself."""
_READ_HERE = frozenset(
    (*_NOT_FORWARDED, b"content-type", b"content-encoding", b"x-session-id", b"origin", b"sec-fetch-site")
)
_MAX_FIELDS = 256
"""nginx and HAProxy refuse about 1,000; clients and the proxies before llmux send a few dozen."""
_MAX_CONNECTION_OPTIONS = 64
_MAX_ENCODINGS = 16
"""Far more than anybody sends; 60 KiB of commas would take milliseconds."""
_MAX_LENGTH_DIGITS = 18
"""Python refuses to read a number of more than 4,300 digits."""
_CONTENT_TYPE = re.compile(rb"((?:^|\r\n)content-type: )[^\r\n]*", re.IGNORECASE)
_AUTHORITY = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
_VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
"""Others are replaced, since the identifier is copied into response heads and logs."""


class RequestHead:
    """The head of the current request; one object serves all requests of a connection in turn.

    Each head gets a parser of its own (0.9 µs): llhttp keeps the state of a connection, and thinks otherwise than llmux
    about when one closes or changes its protocol.
    """

    __slots__ = (
        "_complete",
        "_connection",
        "_content_length",
        "_hosts",
        "_kept",
        "_transfer_encodings",
        "_upgrade",
        "authorization",
        "chunked",
        "content_encoding",
        "content_length",
        "content_type",
        "expects_continue",
        "fetch_site",
        "forwarded",
        "http10",
        "is_form",
        "is_head",
        "is_post",
        "keep_alive",
        "method",
        "model_keep_alive",
        "model_override",
        "origin",
        "priority",
        "repeated",
        "request_id",
        "session",
        "url",
        "x_api_key",
    )

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self.repeated = RepeatedHead()
        """The last head, where the next one may repeat it and differ in ``content_length`` only."""
        self._reset()

    def _reset(self) -> None:
        self.url = b""
        self.method = b""
        self.is_head = self.is_post = False
        self._kept.clear()
        self._hosts: tuple[bytes, ...] = ()
        self.origin: bytes | None = None
        self.fetch_site: bytes | None = None
        self._complete = False
        self.repeated.forget()
        self._connection = b""
        self._transfer_encodings: tuple[bytes, ...] = ()
        self._upgrade = b""
        self._content_length: bytes | None = None
        self.content_length: int | None = None
        self.content_type = b""
        self.content_encoding = b""
        self.is_form = False
        self.chunked = False
        self.http10 = False
        self.keep_alive = True
        self.expects_continue = False
        self.authorization: bytes | None = None
        self.x_api_key: bytes | None = None
        self.model_override: bytes | None = None
        self.model_keep_alive: bytes | None = None
        """How long the model is to stay on the GPU, where ``keep_alive`` is about the connection."""
        self.priority: bytes | None = None
        self.request_id: bytes | None = None
        self.session: str | None = None
        self.forwarded = b""
        """The header lines to be forwarded, each ended by CRLF."""

    # Callbacks of the parser.

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower in _READ_HERE:
            self._read_header(lower, value)
            if lower in _NOT_FORWARDED:
                return
        self._kept.append(name + b": " + value + b"\r\n")

    def on_headers_complete(self) -> None:
        self._complete = True

    def _read_header(self, name: bytes, value: bytes) -> None:  # noqa: C901 - a dispatch table
        match name:
            case b"content-length":
                self._content_length = value
            case b"host":
                self._hosts += (value,)
            case b"origin":
                self.origin = value
            case b"sec-fetch-site":
                self.fetch_site = value
            case b"content-type":
                self.content_type = value
            case b"content-encoding":
                self.content_encoding = self.content_encoding + b"," + value if self.content_encoding else value
            case b"authorization":
                self.authorization = value
            case b"x-api-key" | b"api-key":
                self.x_api_key = value
            case b"x-request-id":
                self.request_id = value if _VALID_REQUEST_ID.fullmatch(value) else None
            case b"connection":
                self._connection = self._connection + b"," + value if self._connection else value
            case b"transfer-encoding":
                self._transfer_encodings += (value,)
            case b"upgrade":
                self._upgrade = value
            case b"model-override":
                self.model_override = value
            case b"x-llmux-priority":
                self.priority = value
            case b"x-llmux-keep-alive":
                self.model_keep_alive = value
            case b"x-session-id":
                self.session = value.decode("latin-1")
            case b"expect":
                self.expects_continue = value.strip().lower() == b"100-continue"
            case _:
                pass

    @property
    def host(self) -> bytes | None:
        """The Host header, of which a request has one; HTTP/1.0 may do without."""
        return self._hosts[0] if self._hosts else None

    @property
    def path(self) -> bytes:
        """The request target's path, percent-encoded as it came, without scheme and authority."""
        url = self.url
        if not url.startswith(b"/"):
            url = _AUTHORITY.sub(b"", url, count=1)
            url = url if url.startswith((b"/", b"*")) else b"/" + url
        return url.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """The query with its question mark, or nothing."""
        at = self.url.find(b"?")
        return self.url[at:] if at >= 0 else b""

    # Called by the connection.

    def parse(self, head: bytes) -> None:
        """Parse a whole head, the empty line included.

        Raises FramingError, MalformedRequest, TooManyHeaders or UpgradeRefused.
        """
        self._reset()
        if head.count(b"\n") > _MAX_FIELDS + 2:
            raise TooManyHeaders(_MAX_FIELDS)
        self.method = method = self._run_parser(head)
        self.is_head, self.is_post = method == b"HEAD", method == b"POST"
        if method == b"CONNECT":
            raise UpgradeRefused
        line_end = head.find(b"\r\n")
        # llhttp tolerates more than one space here.
        if not head.startswith(self.url, len(method) + 1) or line_end != len(method) + len(self.url) + 10:
            raise FramingError("the request line is malformed")
        if head[line_end - 8 : line_end] != b"HTTP/1.1":
            self._accept_http10(head[line_end - 8 : line_end])
        self._check_hosts()
        if self._content_length is not None:
            self.content_length = _parse_length(self._content_length)
        elif self._transfer_encodings:
            self._accept_transfer_encoding()
        if self._connection:
            self._read_connection()
        self.is_form = media_type(self.content_type) is MediaType.FORM
        self.forwarded = b"".join(self._kept)
        self._kept.clear()  # Not by the next head only: an idle stream would keep it all twice.
        # With an identifier of the client's own, which changes with every request, no head would match.
        if self._content_length is not None and self.is_post and self.request_id is None:
            self.repeated.remember(head[:-4])

    def send_as_json(self) -> None:
        """Forward the request as ``application/json``: engines may take no other spelling of it."""
        self.forwarded = _CONTENT_TYPE.sub(rb"\1application/json", self.forwarded)

    def _run_parser(self, head: bytes) -> bytes:
        """Have llhttp validate the head and report its fields; returns the method."""
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # What is offered or asked for is judged by the fields.
        except httptools.HttpParserError as error:
            require_beginning(head)
            raise FramingError(f"the request's head is malformed: {error}") from None
        if not self._complete:
            raise FramingError("the request's head is malformed")
        method: bytes = parser.get_method()
        return method

    def _check_hosts(self) -> None:
        hosts = self._hosts
        if len(hosts) != 1 and not (self.http10 and not hosts):
            raise FramingError("the request must have exactly one Host header")
        for host in hosts:
            if not is_valid_host(host.strip(b" \t")):
                raise FramingError("the Host header is not a host, or a host and a port")
        authority = None if self.url.startswith(b"/") else _AUTHORITY.match(self.url)
        if authority is not None and not is_valid_host(authority[1]):
            raise FramingError("the request target's authority is not a host, or a host and a port")

    def _accept_http10(self, version: bytes) -> None:
        if version != b"HTTP/1.0":
            raise FramingError("only HTTP/1.1 and HTTP/1.0 are spoken here")
        if self._transfer_encodings:
            raise FramingError("an HTTP/1.0 request cannot be chunked")
        self.http10 = True
        self.keep_alive = False

    def _accept_transfer_encoding(self) -> None:
        if [encoding.strip().lower() for encoding in self._transfer_encodings] != [b"chunked"]:
            raise FramingError("the only transfer encoding accepted is 'chunked', once")
        self.chunked = True

    def _read_connection(self) -> None:
        if self._connection.count(b",") > _MAX_CONNECTION_OPTIONS:
            raise MalformedRequest("the Connection header names too many options")
        tokens = {token.strip().lower() for token in self._connection.split(b",")}
        if b"upgrade" in tokens and self._upgrade.strip().lower() == b"websocket":
            raise UpgradeRefused
        if b"close" in tokens:
            self.keep_alive = False
        named = tokens - _NOT_FORWARDED - {b"close", b""}
        if b"content-type" in named:
            raise MalformedRequest("the Connection header must not name Content-Type")
        if named:
            self._kept = [line for line in self._kept if line[: line.index(b":")].lower() not in named]


def require_no_encoding(content_encoding: bytes) -> None:
    """Raise UnsupportedEncoding for a body that is compressed."""
    encodings = [encoding.strip().lower() for encoding in content_encoding.split(b",", _MAX_ENCODINGS)]
    if any(encoding not in (b"", b"identity") for encoding in encodings):
        raise UnsupportedEncoding(content_encoding.decode("latin-1"))


def _parse_length(value: bytes) -> int:
    digits = value.strip(b" \t")
    # llhttp has seen digits only, but allows any number of leading zeros.
    if len(digits) > _MAX_LENGTH_DIGITS or not digits.isdigit():
        raise FramingError("the Content-Length is malformed")
    return int(digits)
