"""One client: asks, listens to the end or leaves, and compares what it heard with what the model had to say."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from llmux.simulation.demo.records import Call, Ending, Kind, Record
from llmux.simulation.engine.text import expected_text

PATIENCE_SECONDS = 60.0
"""An answer that takes longer counts as lost."""


class Broken(Exception):
    """The answer is an error, or is not complete."""


@dataclass(slots=True)
class _Heard:
    """What has come of the answer so far."""

    wait_seconds: float | None = None
    text: str = ""
    finished: bool = False


async def perform(session: aiohttp.ClientSession, call: Call) -> Record:
    """Make one request and say how it ended; never raises, except that a cancellation ends it."""
    heard = _Heard()
    try:
        async with asyncio.timeout(call.leaves_after_seconds or PATIENCE_SECONDS):
            await _ask(session, call, heard)
    except TimeoutError:
        if call.leaves_after_seconds is not None:
            return Record(call, Ending.LEFT, heard.wait_seconds)
        return Record(call, Ending.LOST, heard.wait_seconds, f"no complete answer within {PATIENCE_SECONDS:.0f} s")
    except Broken as broken:
        return Record(call, Ending.LOST, heard.wait_seconds, str(broken))
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
        return Record(call, Ending.LOST, heard.wait_seconds, f"{type(error).__name__}: {error}")
    expected = expected_text(call.model, call.prompt, call.max_tokens)
    if heard.text != expected:
        problem = f"said {heard.text[:60]!r} instead of {expected[:60]!r}"
        return Record(call, Ending.WRONG, heard.wait_seconds, problem)
    return Record(call, Ending.ANSWERED, heard.wait_seconds)


async def _ask(session: aiohttp.ClientSession, call: Call, heard: _Heard) -> None:
    async with session.post(call.path, json=call.body) as response:
        milliseconds = response.headers.get("x-llmux-queue-ms")
        heard.wait_seconds = None if milliseconds is None else float(milliseconds) / 1000
        if response.status != 200:
            raise Broken(f"{response.status}: {(await response.text())[:200]}")
        if call.kind is Kind.CHAT_STREAM:
            async for line in response.content:
                _hear_line(line, heard)
            if not heard.finished:
                raise Broken("the stream ended without [DONE]")
        else:
            _hear_whole(await response.json(), heard)


def _hear_line(line: bytes, heard: _Heard) -> None:
    """One line of an event stream."""
    if not line.startswith(b"data:"):
        return
    data = line.removeprefix(b"data:").strip()
    if data == b"[DONE]":
        heard.finished = True
        return
    event = json.loads(data)
    if "error" in event:
        raise Broken(f"the stream broke off: {event['error'].get('message')}")
    _check_reason(event["choices"][0])
    heard.text += event["choices"][0]["delta"].get("content") or ""


def _hear_whole(document: dict[str, Any], heard: _Heard) -> None:
    choice = document["choices"][0]
    _check_reason(choice)
    heard.text = choice["text"] if "text" in choice else choice["message"]["content"]
    heard.finished = True


def _check_reason(choice: dict[str, Any]) -> None:
    if choice.get("finish_reason") == "abort":
        raise Broken("the answer was aborted by the engine")
