"""The request bodies of the control API, how they are read, and the JSON responses."""

from typing import Any, TypeVar

import msgspec
from aiohttp import web

from llmux.core.eviction import Eviction, Process, Weights

MAX_BODY_BYTES = 64 * 1024
"""The largest body names a model and an eviction; this leaves room for a very long name."""


class EvictionObject(msgspec.Struct, frozen=True):
    """An eviction in a body."""

    weights: Weights
    process: Process

    def eviction(self) -> Eviction:
        """The core's type for it."""
        return Eviction(self.weights, self.process)


class ModelBody(msgspec.Struct, frozen=True):
    """Body of ``switch`` and ``wake``."""

    model: str


class PinBody(msgspec.Struct, frozen=True):
    """Body of ``pin``. ``keep``: others are served beside it."""

    model: str
    keep: bool = False


class ModeBody(msgspec.Struct, frozen=True):
    """Body of ``mode``."""

    mode: str


class EvictionBody(msgspec.Struct, frozen=True):
    """Body of ``eviction``."""

    model: str
    eviction: EvictionObject


class SleepBody(msgspec.Struct, frozen=True):
    """Body of ``sleep``; without an eviction, the model's own is used."""

    model: str
    eviction: EvictionObject | None = None


Body = TypeVar("Body", bound=msgspec.Struct)


class BadBody(Exception):
    """A request body that cannot be used, and the status of the response."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """A request's JSON body; unknown fields are ignored, as in 0.7.7. Raises BadBody with 415, 400 or 422."""
    if request.content_type != "application/json":
        raise BadBody(415, "the body must be JSON: send it with 'Content-Type: application/json'")
    data = await request.read()
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise BadBody(422, f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(400, f"the body is not JSON: {error}") from None


def json_response(document: Any, status: int = 200) -> web.Response:
    """A response with a JSON document."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def done(message: str) -> web.Response:
    """The response to a command that succeeded."""
    return json_response({"message": message})


def error_response(status: int, reason: str) -> web.Response:
    """The response to a request that failed or was refused."""
    return json_response({"error": reason}, status)
