"""The simulated engine's inference endpoints: completions, chats and embeddings, streamed or not."""

import asyncio
import base64
import json
import secrets
import struct
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from aiohttp import web

from llmux.simulation.engine import text
from llmux.simulation.engine.core import DEAD_ERROR, EngineDead, Generation, SimulatedEngine
from llmux.simulation.engine.front import Endpoint
from llmux.simulation.engine.requests import Refused, read_object, required, token_limit

DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class _Task:
    """One request to generate text, and how its response is framed."""

    chat: bool
    generation: Generation
    head: dict[str, Any]
    stream: bool
    include_usage: bool

    def choice(self, content: str, finish_reason: str | None, *, streamed: bool) -> dict[str, Any]:
        """The only member of ``choices`` in a response or a chunk."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        if not self.chat:
            return choice | {"text": content}
        if streamed:
            return choice | {"delta": {"content": content}}
        return choice | {"message": {"role": "assistant", "content": content}}

    def usage(self) -> dict[str, int]:
        """The prompt's words and the generated tokens."""
        prompt, produced = self.generation.prompt_tokens, self.generation.produced
        return {"prompt_tokens": prompt, "completion_tokens": produced, "total_tokens": prompt + produced}

    @property
    def finish_reason(self) -> str:
        """Valid once the generation has ended."""
        return "abort" if self.generation.aborted else self.generation.finish_reason


def _failing_visibly(endpoint: Endpoint) -> Endpoint:
    """The endpoint, which answers 500 once its engine core is dead."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await endpoint(request)
        except EngineDead:
            return web.json_response(DEAD_ERROR, status=500)

    return answer


class Inference:
    """The inference endpoints of one engine."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._options = engine.options

    def endpoints(self) -> dict[str, Endpoint]:
        """By method and path."""
        return {
            "GET /v1/models": self._models,
            "POST /v1/chat/completions": _failing_visibly(self._chat),
            "POST /v1/completions": _failing_visibly(self._completion),
            "POST /v1/embeddings": _failing_visibly(self._embeddings),
            "POST /v1/responses": _failing_visibly(self._response),
            "POST /v1/messages": _failing_visibly(self._message),
            "POST /tokenize": self._tokenize,
        }

    async def _models(self, _: web.Request) -> web.Response:
        now = int(time.time())
        shared = {"object": "model", "created": now, "owned_by": "vllm", "root": self._options.model, "parent": None}
        names = self._options.served_names
        data = [{"id": name, **shared, "max_model_len": self._options.max_model_tokens} for name in names]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        messages = required(body, "messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise Refused(400, "Bad Request", "1 validation error:\n  Input should be a valid list", "body.messages")
        return await self._answer(request, body, text.chat_prompt(messages), chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        return await self._answer(request, body, _joined(required(body, "prompt")), chat=False)

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        given = required(body, "input")
        inputs = [_joined(part) for part in given] if isinstance(given, list) else [given]
        counted = sum(text.count_tokens(part) for part in inputs)
        generation = Generation(repeat(""), counted, 1, "stop")
        with self._engine.request(generation):
            await self._engine.next_token(generation)
        pack = body.get("encoding_format") == "base64"
        vectors = [text.embedding(self._options.name, part) for part in inputs]
        data = [
            {"index": index, "object": "embedding", "embedding": _packed(vector) if pack else vector}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": counted, "total_tokens": counted}
        return web.json_response({"object": "list", "model": self._options.name, "data": data, "usage": usage})

    async def _response(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        given = required(body, "input")
        prompt = text.chat_prompt(given) if isinstance(given, list) else str(given)
        task, answer = await self._whole_text(request, body, prompt, body.get("max_output_tokens"))
        part = {"type": "output_text", "text": answer, "annotations": []}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        usage = {"input_tokens": task.generation.prompt_tokens, "output_tokens": task.generation.produced}
        head = {"id": "resp_" + task.head["id"], "object": "response", "created_at": task.head["created"]}
        model = self._options.name
        return web.json_response({**head, "status": "completed", "model": model, "output": [message], "usage": usage})

    async def _message(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        prompt = text.chat_prompt(required(body, "messages"))
        task, answer = await self._whole_text(request, body, prompt, required(body, "max_tokens"))
        usage = {"input_tokens": task.generation.prompt_tokens, "output_tokens": task.generation.produced}
        head = {"id": task.head["id"], "type": "message", "role": "assistant", "model": self._options.name}
        content = [{"type": "text", "text": answer}]
        reason = "end_turn" if task.finish_reason == "stop" else "max_tokens"
        return web.json_response(
            {**head, "content": content, "stop_reason": reason, "stop_sequence": None, "usage": usage}
        )

    async def _whole_text(
        self, request: web.Request, body: dict[str, Any], prompt: str, limit: object
    ) -> tuple[_Task, str]:
        if body.get("stream"):
            raise Refused(400, "BadRequestError", "the simulated engine streams only chats and completions", "stream")
        task = self._task(request, body | {"max_tokens": limit}, prompt, chat=True)
        with self._engine.request(task.generation):
            return task, await self._whole_answer(task)

    async def _whole_answer(self, task: _Task) -> str:
        pieces = []
        while (piece := await self._engine.next_token(task.generation)) is not None:
            pieces.append(piece)
        return "".join(pieces)

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        words = _joined(body.get("prompt") or text.chat_prompt(body.get("messages") or [])).split()
        tokens = [sum(word.encode()) for word in words]
        return web.json_response(
            {"count": len(tokens), "max_model_len": self._options.max_model_tokens, "tokens": tokens}
        )

    async def _read(self, request: web.Request) -> dict[str, Any]:
        body = await read_object(request)
        name = body.get("model")
        if name is not None and name not in self._options.served_names:
            valid = ", ".join(self._options.served_names)
            message = f"The model `{name}` does not exist. Valid aliases: {valid}."
            raise Refused(404, "NotFoundError", message, "model")
        return body

    async def _answer(
        self, request: web.Request, body: dict[str, Any], prompt: str, *, chat: bool
    ) -> web.StreamResponse:
        task = self._task(request, body, prompt, chat=chat)
        with self._engine.request(task.generation):
            if task.stream:
                return await self._stream(request, task)
            answer = await self._whole_answer(task)
        choice = task.choice(answer, task.finish_reason, streamed=False)
        return web.json_response({**task.head, "choices": [choice], "usage": task.usage()})

    def _task(self, request: web.Request, body: dict[str, Any], prompt: str, *, chat: bool) -> _Task:
        counted = text.count_tokens(prompt)
        default = text.DEFAULT_CHAT_TOKENS if chat else DEFAULT_COMPLETION_TOKENS
        limit = token_limit(body, default, counted, self._options.max_model_tokens)
        limited = not chat or any(body.get(key) for key in ("max_tokens", "max_completion_tokens"))
        if body.get("temperature") == 0 and body.get("seed") is not None:
            generation = Generation(repeat(text.PROBE_ANSWER), counted, 1, "stop")
        else:
            source = text.tokens(self._options.name, prompt)
            generation = Generation(source, counted, limit, "length" if limited else "stop")
        stream = bool(body.get("stream"))
        kind = "chat.completion" if chat else "text_completion"
        head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + (request.headers.get("X-Request-Id") or secrets.token_hex(8)),
            "object": f"{kind}.chunk" if chat and stream else kind,
            "created": int(time.time()),
            "model": self._options.name,
        }
        include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        return _Task(chat, generation, head, stream, include_usage)

    async def _stream(self, request: web.Request, task: _Task) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        async with aclosing(self._events(task)) as events:
            async for event in events:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(event)
        await response.write_eof()
        return response

    async def _events(self, task: _Task) -> AsyncGenerator[bytes, None]:
        """The stream's events. As in vLLM, not even the response head is sent before the first token."""
        head = json.dumps(task.head)[:-1]

        def chunk(choice: dict[str, Any]) -> bytes:
            return f'data: {head}, "choices": [{json.dumps(choice)}]}}\n\n'.encode()

        piece = await self._engine.next_token(task.generation)
        if task.chat:
            delta = {"role": "assistant", "content": ""}
            yield chunk({"index": 0, "delta": delta, "logprobs": None, "finish_reason": None})
        try:
            while piece is not None:
                yield chunk(task.choice(piece, None, streamed=True))
                if not self._engine.timings.token_seconds:
                    await asyncio.sleep(0)
                piece = await self._engine.next_token(task.generation)
        except EngineDead:
            yield f"data: {json.dumps(DEAD_ERROR)}\n\ndata: [DONE]\n\n".encode()
            return
        yield chunk(task.choice("", task.finish_reason, streamed=True))
        if task.include_usage:
            yield f'data: {head}, "choices": [], "usage": {json.dumps(task.usage())}}}\n\n'.encode()
        yield b"data: [DONE]\n\n"


def _joined(prompt: object) -> str:
    return " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
