"""The head of a client's request: judged by llhttp, sorted into what llmux reads, drops and passes on."""

import re

import httptools

from llmux.errors import MalformedRequest, UpgradeRefused
from llmux.gateway.body_model import is_form
from llmux.gateway.chunks import FramingError

_DROPPED = frozenset(
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
_TO_READ = frozenset((*_DROPPED, b"content-type"))
_AUTHORITY = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_MAX_LENGTH_DIGITS = 15
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestHead:
    """One request's head; the same object serves all requests of a connection, one after the other."""

    __slots__ = (
        "_after_length",
        "_before_length",
        "_complete",
        "_connection",
        "_content_length",
        "_hosts",
        "_is_fed",
        "_kept",
        "_parser",
        "_transfer_encoding",
        "_upgrade",
        "authorization",
        "chunked",
        "content_length",
        "content_type",
        "expects_continue",
        "forwarded",
        "http10",
        "is_form",
        "keep_alive",
        "method",
        "model_override",
        "priority",
        "request_id",
        "url",
        "x_api_key",
    )

    def __init__(self) -> None:
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._kept: list[bytes] = []
        self._reset()

    def _reset(self) -> None:
        self.url = b""
        self.method = b""
        self._kept.clear()
        self._hosts = 0
        self._complete = False
        self._is_fed = True
        self._before_length = b""
        self._after_length = b""
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
        self.forwarded = b""
        """The header lines that an engine gets, each ended by CRLF."""

    def release(self) -> None:
        """Break the reference cycle with the parser; the head cannot be used again."""
        self._parser = None

    # Called by the parser.

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower in _TO_READ:
            self._read_header(lower, value)
            if lower in _DROPPED:
                return
        self._kept.append(name + b": " + value + b"\r\n")

    def on_headers_complete(self) -> None:
        self._complete = True

    def _read_header(self, name: bytes, value: bytes) -> None:
        match name:
            case b"content-length":
                self._content_length = value
            case b"host":
                self._hosts += 1
            case b"content-type":
                self.content_type = value
            case b"authorization":
                self.authorization = value
            case b"x-api-key" | b"api-key":
                self.x_api_key = value
            case b"x-request-id":
                self.request_id = value if _SANE_REQUEST_ID.fullmatch(value) else None
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
            case b"expect":
                self.expects_continue = value.strip().lower() == b"100-continue"
            case _:
                pass

    @property
    def path(self) -> bytes:
        """The target's path, still percent-encoded, without scheme and authority."""
        url = self.url
        if not url.startswith(b"/"):
            url = _AUTHORITY.sub(b"", url, count=1)
            url = url if url.startswith((b"/", b"*")) else b"/" + url
        return url.partition(b"?")[0]

    @property
    def query(self) -> bytes:
        """The question mark and what follows it, or nothing."""
        at = self.url.find(b"?")
        return self.url[at:] if at >= 0 else b""

    # Called by the connection.

    def parse(self, head: bytes) -> None:
        """Read a whole head, the empty line included; raises FramingError or UpgradeRefused."""
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
        if not head.startswith(self.url, len(method) + 1) or line_end != len(method) + len(self.url) + 10:
            raise FramingError("the request line is malformed")
        if head[line_end - 8 : line_end] != b"HTTP/1.1":
            self._be_http10(head[line_end - 8 : line_end])
        elif self._hosts != 1:
            raise FramingError("the request must have exactly one Host header")
        if self._content_length is not None:
            self.content_length = int(self._content_length)
        elif self._transfer_encoding is not None:
            self._be_chunked()
        if self._connection:
            self._read_connection()
        self.is_form = is_form(self.content_type)
        self.forwarded = b"".join(self._kept)
        self._remember(head)

    def repeat(self, head: bytes) -> bool:
        """Whether a whole head is the last one again, but for the digits of its Content-Length.

        The clients of one connection repeat themselves, and what llhttp has judged need not be judged again. If so,
        ``content_length`` is the new one and all the rest stays.
        """
        before = self._before_length
        if not before or not head.startswith(before):
            return False
        end = head.find(b"\r\n", len(before))
        digits = head[len(before) : end]
        if head[end:] != self._after_length or not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
            return False
        self.content_length = int(digits)
        return True

    def _remember(self, head: bytes) -> None:
        if self._content_length is not None and self.method == b"POST" and self.request_id is None:
            at = head.lower().find(b"\r\ncontent-length:") + 17
            start = head.find(self._content_length, at)
            self._before_length = head[:start]
            self._after_length = head[head.find(b"\r\n", start) :]

    def finish(self, body: bytes) -> None:
        """Tell the parser that a body of ``content_length`` bytes has passed, so that the next head can follow."""
        if not self._is_fed:
            return
        self._is_fed = False
        if self.chunked:
            body = b"0\r\n\r\n"
        if body and self._parser is not None:
            self._parser.feed_data(body)

    def _ignore_upgrade(self) -> None:
        """Go on with HTTP/1.1 where that is the client's second wish; raises UpgradeRefused where it is not.

        Java's HttpClient offers HTTP/2 (h2c) with the first request of every connection.
        """
        if self._upgrade.lower() != b"h2c" or self._parser is None or self._parser.get_method() == b"CONNECT":
            raise UpgradeRefused from None
        self._parser = httptools.HttpRequestParser(self)
        self._is_fed = False

    def _be_http10(self, version: bytes) -> None:
        if version != b"HTTP/1.0":
            raise FramingError("only HTTP/1.1 and HTTP/1.0 are spoken here")
        if self._transfer_encoding is not None:
            raise FramingError("an HTTP/1.0 request cannot be chunked")
        self.http10 = True
        self.keep_alive = False

    def _be_chunked(self) -> None:
        if self._transfer_encoding is None or self._transfer_encoding.strip().lower() != b"chunked":
            raise FramingError("the only transfer encoding accepted is 'chunked'")
        self.chunked = True

    def _read_connection(self) -> None:
        tokens = {token.strip().lower() for token in self._connection.split(b",")}
        if b"close" in tokens:
            self.keep_alive = False
        named = tokens - _DROPPED - {b"close", b""}
        if b"content-type" in named:
            raise MalformedRequest("the Connection header must not name Content-Type")
        if named:
            self._kept = [line for line in self._kept if line[: line.index(b":")].lower() not in named]
