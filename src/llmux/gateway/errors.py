"""Errors that only a client's use of HTTP can cause, or an engine's.

Those that come from the scheduler are in ``llmux.errors``. ``answers.py`` maps all of them to statuses and codes.
"""

from collections.abc import Sequence

from llmux.errors import EngineError, RequestError


class MalformedRequest(RequestError):
    """The request cannot be understood: its framing, its JSON or its form is invalid."""


class InvalidJson(MalformedRequest):
    """The body must be JSON and is not."""


class MissingModel(RequestError):
    """The request names no model; ``remedy`` says how it can."""

    def __init__(
        self,
        remedy: str = 'put a top-level "model" into the JSON body, a form field "model", a model-override header, or '
        "use /upstream/MODEL/...",
    ) -> None:
        super().__init__(f"the request names no model: {remedy}")


class InvalidApiKey(RequestError):
    """API keys are configured and the request carries none of them."""

    def __init__(self) -> None:
        super().__init__("missing or wrong API key: send it as 'Authorization: Bearer KEY'")


class OriginNotAllowed(RequestError):
    """A web page sent the request, no key is needed, and the page is neither of this machine nor allowed."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"the request comes from a web page of {origin[:200]}, which may not use llmux: list its origin under "
            "cors_origins, or set api_keys"
        )


class HostNotAllowed(RequestError):
    """The request calls this machine by a name that is not known to be its own, and no key is needed."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"the Host header names {host[:200]}, which llmux does not know as a name of this machine: list it under "
            "allowed_hosts, or set api_keys"
        )


class PathForbidden(RequestError):
    """A control path of engines, which is never forwarded: a client could sleep or stop the engine with it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path[:200]} is an engine control path and is not forwarded; use /control instead")


class UnknownPath(RequestError):
    """No route has this path; ``hint`` is what the client may have meant, in sentences."""

    def __init__(self, path: str, hint: str = "") -> None:
        super().__init__(f"no such path: {path[:200]}. {hint}".rstrip(" ."))


class UnsupportedMediaType(RequestError):
    """The endpoint takes bodies of another type; ``wanted`` says of which."""

    def __init__(self, content_type: str, wanted: str) -> None:
        given = f"is {content_type[:100]}" if content_type else "is missing"
        super().__init__(f"the Content-Type {given}; this endpoint takes {wanted}")


class MethodNotAllowed(RequestError):
    """The path exists, but not with this method."""

    def __init__(self, method: str, path: str, allowed: Sequence[str]) -> None:
        self.allowed = tuple(allowed)
        super().__init__(f"{method} is not possible on {path[:200]}; use {' or '.join(self.allowed)}")


class HeadTooLarge(RequestError):
    """The request line and the headers together exceed their limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"the request's headers are larger than {limit_bytes} bytes")


class TooManyHeaders(RequestError):
    """The head has more fields than any client sends."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request has more than {limit} headers")


class RequestTooLarge(RequestError):
    """The body exceeds ``max_body_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"the request body is larger than {limit_bytes} bytes (max_body_bytes)")


class UnsupportedEncoding(RequestError):
    """The body is compressed; engines read it as it comes."""

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"the request body's Content-Encoding '{encoding[:100]}' is not supported: send the body uncompressed"
        )


class InternalError(RequestError):
    """An error in llmux itself, which its log explains."""

    def __init__(self) -> None:
        super().__init__("unexpected error in llmux, see its log")


class RequestStalled(RequestError):
    """The client did not send the rest of a request in time."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the request was not sent in time: {what}")


class UpgradeRefused(RequestError):
    """The client asked for another protocol on its connection (WebSocket, CONNECT, h2c)."""

    def __init__(self) -> None:
        super().__init__("protocol upgrades (WebSocket, CONNECT) are not supported; use plain HTTP/1.1")


class OutOfDescriptors(RequestError):
    """llmux lacks what a connection to an engine takes: a file descriptor, kernel memory or a local port."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"llmux could not open a connection to the engine, which runs: {reason}; "
            "raise llmux's limit on open files (ulimit -n)"
        )


class BadGateway(EngineError):
    """The engine could not be reached, or it broke off or garbled its response."""
