"""The head of a client's request: buffered until complete, validated by llhttp, its fields read, dropped or kept."""

import re

import httptools

from llmux.gateway.errors import MalformedRequest, UpgradeRefused
from llmux.gateway.http.bodies import is_form
from llmux.gateway.http.chunks import FramingError
from llmux.gateway.http.repeated_head import RepeatedHead

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
        b"x-llmux-priority",
    )
)
"""Fields of one hop, credentials, and what llmux writes itself."""
_READ_HERE = frozenset((*_NOT_FORWARDED, b"content-type", b"x-session-id", b"origin", b"sec-fetch-site"))
_AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_CONTENT_TYPE = re.compile(rb"((?:^|\r\n)content-type: )[^\r\n]*", re.IGNORECASE)
_VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
"""Others are replaced, since the identifier is copied into response heads and logs."""


class HeadBuffer:
    """Collects a head that arrives in pieces."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces = bytearray()
        """Empty unless a head has begun."""

    def clear(self) -> None:
        """Drop what was collected."""
        self.pieces.clear()

    def add(self, data: bytes, limit_bytes: int) -> bytes:
        """Add a piece; returns everything once the head is complete or exceeds the limit, and nothing before.

        Empty lines before the request line are skipped (RFC 9112, 2.2).
        """
        pieces = self.pieces
        searched = max(0, len(pieces) - 3)
        pieces += data
        while pieces.startswith(b"\r\n"):
            del pieces[:2]
            searched = 0
        if pieces.find(b"\r\n\r\n", searched) < 0 and len(pieces) <= limit_bytes:
            return b""
        joined = bytes(pieces)
        pieces.clear()
        return joined


class RequestHead:
    """The head of the current request; one object, with its parser, serves all requests of a connection in turn."""

    __slots__ = (
        "_complete",
        "_connection",
        "_content_length",
        "_hosts",
        "_kept",
        "_parser",
        "_parser_awaits_body",
        "_transfer_encoding",
        "_upgrade",
        "authorization",
        "chunked",
        "content_length",
        "content_type",
        "expects_continue",
        "fetch_site",
        "forwarded",
        "host",
        "http10",
        "is_form",
        "keep_alive",
        "method",
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
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._kept: list[bytes] = []
        self.repeated = RepeatedHead()
        """The last head, where the next one may repeat it and differ in ``content_length`` only."""
        self._reset()

    def _reset(self) -> None:
        self.url = b""
        self.method = b""
        self._kept.clear()
        self._hosts = 0
        self.host: bytes | None = None
        self.origin: bytes | None = None
        self.fetch_site: bytes | None = None
        self._complete = False
        self._parser_awaits_body = True
        self.repeated.forget()
        self._connection = b""
        self._transfer_encoding: bytes | None = None
        self._upgrade = b""
        self._content_length: bytes | None = None
        self.content_length: int | None = None
        self.content_type = b""
        self.is_form = False
        self.chunked = False
        self.http10 = False
        self.keep_alive = True
        self.expects_continue = False
        self.authorization: bytes | None = None
        self.x_api_key: bytes | None = None
        self.model_override: bytes | None = None
        self.priority: bytes | None = None
        self.request_id: bytes | None = None
        self.session: str | None = None
        self.forwarded = b""
        """The header lines to be forwarded, each ended by CRLF."""

    def release(self) -> None:
        """Break the reference cycle with the parser; no other head can be parsed afterwards."""
        self._parser = None

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
                self._hosts += 1
                self.host = value
            case b"origin":
                self.origin = value
            case b"sec-fetch-site":
                self.fetch_site = value
            case b"content-type":
                self.content_type = value
            case b"authorization":
                self.authorization = value
            case b"x-api-key" | b"api-key":
                self.x_api_key = value
            case b"x-request-id":
                self.request_id = value if _VALID_REQUEST_ID.fullmatch(value) else None
            case b"connection":
                self._connection = self._connection + b"," + value if self._connection else value
            case b"transfer-encoding":
                self._transfer_encoding = value
            case b"upgrade":
                self._upgrade = value
            case b"model-override":
                self.model_override = value
            case b"x-llmux-priority":
                self.priority = value
            case b"x-session-id":
                self.session = value.decode("latin-1")
            case b"expect":
                self.expects_continue = value.strip().lower() == b"100-continue"
            case _:
                pass

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

        Raises FramingError, MalformedRequest or UpgradeRefused.
        """
        self._reset()
        parser = self._parser
        assert parser is not None
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        except httptools.HttpParserError as error:
            raise FramingError(f"the request's head is malformed: {error}") from None
        if not self._complete:
            raise FramingError("the request's head is malformed")
        self.method = method = parser.get_method()
        line_end = head.find(b"\r\n")
        # llhttp tolerates more than one space here.
        if not head.startswith(self.url, len(method) + 1) or line_end != len(method) + len(self.url) + 10:
            raise FramingError("the request line is malformed")
        if head[line_end - 8 : line_end] != b"HTTP/1.1":
            self._accept_http10(head[line_end - 8 : line_end])
        elif self._hosts != 1:
            raise FramingError("the request must have exactly one Host header")
        if self._content_length is not None:
            self.content_length = int(self._content_length)
        elif self._transfer_encoding is not None:
            self._accept_transfer_encoding(self._transfer_encoding)
        if self._connection:
            self._read_connection()
        self.is_form = is_form(self.content_type)
        self.forwarded = b"".join(self._kept)
        # With an identifier of the client's own, which changes with every request, no head would match.
        if self._content_length is not None and method == b"POST" and self.request_id is None:
            self.repeated.remember(head)

    def send_as_json(self) -> None:
        """Forward the request as ``application/json``: vLLM takes no other spelling of it."""
        self.forwarded = _CONTENT_TYPE.sub(rb"\1application/json", self.forwarded)

    def finish(self, body: bytes) -> None:
        """Feed the body to the parser, which accepts another head only after it.

        Once per parsed head: a repeated one never reaches the parser.
        """
        if not self._parser_awaits_body:
            return
        self._parser_awaits_body = False
        if self.chunked:
            body = b"0\r\n\r\n"  # Its chunks have been decoded; for the parser an empty body will do.
        if body and self._parser is not None:
            self._parser.feed_data(body)

    def _ignore_upgrade(self) -> None:
        """Ignore an offer of h2c and go on with HTTP/1.1; raises UpgradeRefused for any other upgrade.

        Java's HttpClient makes that offer with the first request of every connection.
        """
        if self._upgrade.lower() != b"h2c" or self._parser is None or self._parser.get_method() == b"CONNECT":
            raise UpgradeRefused from None
        # After an upgrade llhttp parses no more HTTP. The new parser has seen no head, so it awaits no body either.
        self._parser = httptools.HttpRequestParser(self)
        self._parser_awaits_body = False

    def _accept_http10(self, version: bytes) -> None:
        if version != b"HTTP/1.0":
            raise FramingError("only HTTP/1.1 and HTTP/1.0 are spoken here")
        if self._transfer_encoding is not None:
            raise FramingError("an HTTP/1.0 request cannot be chunked")
        self.http10 = True
        self.keep_alive = False

    def _accept_transfer_encoding(self, encoding: bytes) -> None:
        if encoding.strip().lower() != b"chunked":
            raise FramingError("the only transfer encoding accepted is 'chunked'")
        self.chunked = True

    def _read_connection(self) -> None:
        tokens = {token.strip().lower() for token in self._connection.split(b",")}
        if b"close" in tokens:
            self.keep_alive = False
        named = tokens - _NOT_FORWARDED - {b"close", b""}
        if b"content-type" in named:
            raise MalformedRequest("the Connection header must not name Content-Type")
        if named:
            self._kept = [line for line in self._kept if line[: line.index(b":")].lower() not in named]
