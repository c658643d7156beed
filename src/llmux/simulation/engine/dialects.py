"""How vLLM words one answer in each of its APIs: completions, chats, OpenAI's responses, Anthropic's messages.

The shapes and the order of the events are those of vLLM 0.32, less the fields that no client needs.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from llmux.simulation.engine.core import DEAD_ERROR, Generation


@dataclass(frozen=True, slots=True)
class Task:
    """One request to generate text."""

    model: str
    """Under this name it is answered."""
    identifier: str
    created: int
    max_tokens: int | None
    generation: Generation

    @property
    def finish_reason(self) -> str:
        """Valid once the generation has ended."""
        return "abort" if self.generation.aborted else self.generation.finish_reason


class Dialect(Protocol):
    """The words of one API for one task."""

    @property
    def task(self) -> Task: ...

    def whole(self, answer: str) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    def at_once(self) -> Iterator[bytes]:
        """The events that do not wait for a token."""

    def begin(self) -> Iterator[bytes]:
        """The events before the first token's, which are sent with it."""

    def token(self, token: str) -> bytes:
        """A token's event."""

    def end(self, answer: str) -> Iterator[bytes]:
        """The events after the last token."""

    def death(self) -> bytes:
        """What a stream says when its engine dies; nothing: its connection is cut off."""


@dataclass(frozen=True)
class Completion:
    """``/v1/completions`` and, with ``chat``, ``/v1/chat/completions``."""

    task: Task
    chat: bool
    include_usage: bool = False

    def whole(self, answer: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": answer}} if self.chat else {"text": answer}
        choice = self._choice(said, self.task.finish_reason)
        return {**self._head(streamed=False), "choices": [choice], "usage": self._usage()}

    def at_once(self) -> Iterator[bytes]:
        return iter(())

    def begin(self) -> Iterator[bytes]:
        if self.chat:
            yield self._chunk({"delta": {"role": "assistant", "content": ""}})

    def token(self, token: str) -> bytes:
        return self._chunk(self._said(token))

    def end(self, answer: str) -> Iterator[bytes]:
        yield self._chunk(self._said(""), self.task.finish_reason)
        if self.include_usage:
            yield _event({**self._head(streamed=True), "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def death(self) -> bytes:
        return _event(DEAD_ERROR) + b"data: [DONE]\n\n"

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + self.task.identifier,
            "object": f"{kind}.chunk" if self.chat and streamed else kind,
            "created": self.task.created,
            "model": self.task.model,
        }

    def _said(self, piece: str) -> dict[str, Any]:
        return {"delta": {"content": piece}} if self.chat else {"text": piece}

    def _choice(self, said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, "logprobs": None, "finish_reason": finish_reason, **said}

    def _chunk(self, said: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return f'{self._chunk_head}, "choices": [{json.dumps(self._choice(said, finish_reason))}]}}\n\n'.encode()

    @cached_property
    def _chunk_head(self) -> str:
        """Written once, because replays and benches stream a lot."""
        return "data: " + json.dumps(self._head(streamed=True))[:-1]

    def _usage(self) -> dict[str, int]:
        prompt, produced = self.task.generation.prompt_tokens, self.task.generation.produced
        return {"prompt_tokens": prompt, "completion_tokens": produced, "total_tokens": prompt + produced}


@dataclass(slots=True)
class Response:
    """``/v1/responses``."""

    task: Task
    _sequence_number: int = field(default=0, init=False)

    def whole(self, answer: str) -> dict[str, Any]:
        cut = self.task.finish_reason == "length"
        generation = self.task.generation
        usage = {
            "input_tokens": generation.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": generation.produced,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": generation.prompt_tokens + generation.produced,
        }
        details = {"reason": "max_output_tokens"} if cut else None
        status = "incomplete" if cut else "completed"
        return self._document(status, [self._item("completed", answer)], usage, details)

    def at_once(self) -> Iterator[bytes]:
        for kind in ("created", "in_progress"):
            yield self._event(kind, response=self._document("in_progress", [], None, None))

    def begin(self) -> Iterator[bytes]:
        yield self._event("output_item.added", output_index=0, item=self._item("in_progress"))
        yield self._of_part("content_part.added", part=_part(""))

    def token(self, token: str) -> bytes:
        return self._of_part("output_text.delta", delta=token, logprobs=[])

    def end(self, answer: str) -> Iterator[bytes]:
        yield self._of_part("output_text.done", text=answer, logprobs=[])
        yield self._of_part("content_part.done", part=_part(answer))
        yield self._event("output_item.done", output_index=0, item=self._item("completed", answer))
        yield self._event("completed", response=self.whole(answer))

    def death(self) -> bytes:
        return b""

    def _document(
        self, status: str, output: list[Any], usage: dict[str, Any] | None, incomplete_details: dict[str, str] | None
    ) -> dict[str, Any]:
        return {
            "id": f"resp_{self.task.identifier}",
            "object": "response",
            "created_at": self.task.created,
            "model": self.task.model,
            "status": status,
            "incomplete_details": incomplete_details,
            "max_output_tokens": self.task.max_tokens,
            "output": output,
            "usage": usage,
            "parallel_tool_calls": True,
            "tool_choice": "none",
            "tools": [],
        }

    def _item(self, status: str, answer: str | None = None) -> dict[str, Any]:
        content = [] if answer is None else [_part(answer)]
        identity = {"id": f"msg_{self.task.identifier}", "type": "message", "role": "assistant"}
        return {**identity, "status": status, "content": content}

    def _of_part(self, kind: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=f"msg_{self.task.identifier}", output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        name = f"response.{kind}"
        number, self._sequence_number = self._sequence_number, self._sequence_number + 1
        return _event({**fields, "sequence_number": number, "type": name}, name)


@dataclass(frozen=True, slots=True)
class Message:
    """``/v1/messages``."""

    task: Task

    def whole(self, answer: str) -> dict[str, Any]:
        content = [{"type": "text", "text": answer}]
        return {**self._head(), "content": content, **self._stop(), "usage": self._usage()}

    def at_once(self) -> Iterator[bytes]:
        return iter(())

    def begin(self) -> Iterator[bytes]:
        started = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None}
        usage = {**self._usage(), "output_tokens": 0}
        yield _named({"type": "message_start", "message": {**started, "usage": usage}})
        yield _named({"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0})

    def token(self, token: str) -> bytes:
        return _named({"type": "content_block_delta", "delta": {"type": "text_delta", "text": token}, "index": 0})

    def end(self, answer: str) -> Iterator[bytes]:
        yield _named({"type": "content_block_stop", "index": 0})
        yield _named({"type": "message_delta", "delta": self._stop(), "usage": self._usage()})
        yield _named({"type": "message_stop"})

    def death(self) -> bytes:
        error = {"type": "internal_error", "message": DEAD_ERROR["error"]["message"]}
        return _named({"type": "error", "error": error})

    def _head(self) -> dict[str, Any]:
        identifier = f"chatcmpl-{self.task.identifier}"
        return {"id": identifier, "type": "message", "role": "assistant", "model": self.task.model}

    def _stop(self) -> dict[str, str | None]:
        reason = {"stop": "end_turn", "length": "max_tokens"}.get(self.task.finish_reason)
        return {"stop_reason": reason, "stop_sequence": None}

    def _usage(self) -> dict[str, int]:
        generation = self.task.generation
        return {"input_tokens": generation.prompt_tokens, "output_tokens": generation.produced}


def anthropic_error(error: dict[str, Any]) -> dict[str, Any]:
    """An error's body for Anthropic's clients, from that for OpenAI's."""
    return {"type": "error", "error": {key: error["error"][key] for key in ("type", "message")}}


def _part(answer: str) -> dict[str, Any]:
    return {"type": "output_text", "text": answer, "annotations": [], "logprobs": None}


def _named(document: dict[str, Any]) -> bytes:
    return _event(document, document["type"])


def _event(document: dict[str, Any], name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(document)}\n\n".encode()
