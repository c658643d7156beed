"""The bodies of the control API: how requests are read, and what answers look like."""

from typing import Any, TypeVar

import msgspec
from aiohttp import web

from llmux.core.eviction import Eviction, Process, Weights

MAX_BODY_BYTES = 64 * 1024


class EvictionWords(msgspec.Struct, frozen=True):
    """How an eviction is written: both words, in lower snake case."""

    weights: Weights
    process: Process

    def meaning(self) -> Eviction:
        """The eviction that the words stand for."""
        return Eviction(self.weights, self.process)


class ModelBody(msgspec.Struct, frozen=True):
    """``pin``, ``switch``, ``wake``."""

    model: str


class ModeBody(msgspec.Struct, frozen=True):
    """``mode``."""

    mode: str


class EvictionBody(msgspec.Struct, frozen=True):
    """``eviction``."""

    model: str
    eviction: EvictionWords


class SleepBody(msgspec.Struct, frozen=True):
    """``sleep``."""

    model: str
    eviction: EvictionWords | None = None


Body = TypeVar("Body", bound=msgspec.Struct)


class BadBody(Exception):
    """A request's body cannot be used; becomes an answer with this status."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """A request's JSON body; fields that are not known are passed over. Raises BadBody with 415, 400 or 422."""
    if request.content_type != "application/json":
        raise BadBody(415, "the body must be JSON: send it with 'Content-Type: application/json'")
    data = await request.read()
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise BadBody(422, f"the body does not fit: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBody(400, f"the body is not JSON: {error}") from None


def json_answer(document: Any, status: int = 200) -> web.Response:
    """An answer with a JSON document."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def message(text: str) -> web.Response:
    """What was asked for has been done."""
    return json_answer({"message": text})


def error_answer(status: int, text: str) -> web.Response:
    """What was asked for has not been done, and why."""
    return json_answer({"error": text}, status)
