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
    """The request names no model."""

    def __init__(self) -> None:
        super().__init__(
            'the request names no model: put a top-level "model" into the JSON body, a form field "model", '
            "a model-override header, or use /upstream/MODEL/..."
        )


class InvalidApiKey(RequestError):
    """API keys are configured and the request carries none of them."""

    def __init__(self) -> None:
        super().__init__("missing or wrong API key: send it as 'Authorization: Bearer KEY'")


class PathForbidden(RequestError):
    """A control path of engines, which is never forwarded: a client could sleep or stop the engine with it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path[:200]} is an engine control path and is not forwarded; use /control instead")


class UnknownPath(RequestError):
    """No route has this path."""

    def __init__(self, path: str) -> None:
        super().__init__(f"no such path: {path[:200]}; inference is under /v1, or under /upstream/MODEL")


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


class RequestTooLarge(RequestError):
    """The body exceeds ``max_body_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"the request body is larger than {limit_bytes} bytes (max_body_bytes)")


class RequestStalled(RequestError):
    """The client did not send the rest of a request in time."""

    def __init__(self, part: str, limit_seconds: float) -> None:
        super().__init__(f"the request's {part} did not arrive within {limit_seconds:g} s")


class UpgradeRefused(RequestError):
    """The client asked for another protocol on its connection (WebSocket, CONNECT, h2c)."""

    def __init__(self) -> None:
        super().__init__("protocol upgrades (WebSocket, CONNECT) are not supported; use plain HTTP/1.1")


class OutOfDescriptors(RequestError):
    """llmux lacks what a connection to an engine takes: a file descriptor, kernel memory or a local port."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"llmux could not open a connection to the engine, which runs: {reason}; "
            "raise llmux's limit of open files (ulimit -n) or lower max_connections"
        )


class BadGateway(EngineError):
    """The engine could not be reached, or it broke off or garbled its response."""
