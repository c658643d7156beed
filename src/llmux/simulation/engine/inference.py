"""The simulated engine's inference endpoints, in the APIs of OpenAI and Anthropic, streamed or not."""

import asyncio
import base64
import secrets
import struct
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import repeat
from typing import Any

from aiohttp import web

from llmux.simulation.engine import text
from llmux.simulation.engine.core import DEAD_ERROR, EngineDead, Generation, SimulatedEngine
from llmux.simulation.engine.dialects import Completion, Dialect, Message, Response, Task, anthropic_error
from llmux.simulation.engine.front import Endpoint
from llmux.simulation.engine.requests import Refused, read_object, required, token_limit

DEFAULT_COMPLETION_TOKENS = 16


def _failing_visibly(endpoint: Endpoint) -> Endpoint:
    """The endpoint, which answers 500 once its engine core is dead."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await endpoint(request)
        except EngineDead:
            return web.json_response(DEAD_ERROR, status=500)

    return answer


def _in_anthropics_words(endpoint: Endpoint) -> Endpoint:
    """The endpoint with errors in Anthropic's envelope, except those of its form, as in vLLM."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await endpoint(request)
        except EngineDead:
            return web.json_response(anthropic_error(DEAD_ERROR), status=500)
        except Refused as refused:
            if refused.is_of_form:
                raise
            return web.json_response(anthropic_error(refused.document), status=refused.response.status)

    return answer


class Inference:
    """The inference endpoints of one engine."""

    def __init__(self, engine: SimulatedEngine, owner: str = "vllm") -> None:
        """``owner`` is who owns the models, as ``/v1/models`` says."""
        self._engine = engine
        self._owner = owner
        self._options = engine.options

    def endpoints(self) -> dict[str, Endpoint]:
        """By method and path."""
        return {
            "GET /v1/models": self._models,
            "POST /v1/chat/completions": _failing_visibly(self._chat),
            "POST /v1/completions": _failing_visibly(self._completion),
            "POST /v1/embeddings": _failing_visibly(self._embeddings),
            "POST /v1/responses": _failing_visibly(self._response),
            "POST /v1/messages": _in_anthropics_words(self._message),
            "POST /v1/messages/count_tokens": _in_anthropics_words(self._count_tokens),
            "POST /tokenize": self._tokenize,
        }

    async def _models(self, _: web.Request) -> web.Response:
        options = self._options
        shared = {"object": "model", "created": int(time.time()), "owned_by": self._owner}
        base = {**shared, "root": options.model, "parent": None, "max_model_len": options.max_model_tokens}
        data = [{"id": name, **base} for name in options.served_names]
        for adapter in options.adapters:
            own = {"root": adapter.path, "parent": adapter.base_model_name or options.name, "max_model_len": None}
            data.append({"id": adapter.name, **shared, **own})
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        messages = _messages(body)
        task = self._task(request, body, text.chat_prompt(messages), text.DEFAULT_CHAT_TOKENS)
        return await self._answer(request, body, Completion(task, chat=True, include_usage=_wants_usage(body)))

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        task = self._task(request, body, _joined(required(body, "prompt")), DEFAULT_COMPLETION_TOKENS)
        return await self._answer(request, body, Completion(task, chat=False, include_usage=_wants_usage(body)))

    async def _response(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        given = required(body, "input")
        messages = given if isinstance(given, list) else [{"content": given}]
        prompt = text.chat_prompt(_instructed(body.get("instructions"), messages))
        body["max_tokens"] = body.get("max_output_tokens")
        return await self._answer(request, body, Response(self._task(request, body, prompt, text.DEFAULT_CHAT_TOKENS)))

    async def _message(self, request: web.Request) -> web.StreamResponse:
        body, prompt = await self._read_message(request)
        required(body, "max_tokens")
        return await self._answer(request, body, Message(self._task(request, body, prompt, text.DEFAULT_CHAT_TOKENS)))

    async def _count_tokens(self, request: web.Request) -> web.Response:
        _, prompt = await self._read_message(request)
        counted = text.count_tokens(prompt)
        document = {"input_tokens": counted, "context_management": {"original_input_tokens": counted}}
        return web.json_response(document)

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

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        words = _joined(body.get("prompt") or text.chat_prompt(body.get("messages") or [])).split()
        tokens = [sum(word.encode()) for word in words]
        return web.json_response(
            {"count": len(tokens), "max_model_len": self._options.max_model_tokens, "tokens": tokens}
        )

    async def _read_message(self, request: web.Request) -> tuple[dict[str, Any], str]:
        """The body of a request of Anthropic's API, which has to name a model, and its prompt."""
        body = await self._read(request)
        required(body, "model")
        return body, text.chat_prompt(_instructed(body.get("system"), _messages(body)))

    async def _read(self, request: web.Request) -> dict[str, Any]:
        body = await read_object(request)
        name = body.get("model")
        if self._options.answering_name(name) is None:
            # It does not name the adapters.
            valid = ", ".join(self._options.served_names)
            message = f"The model `{name}` does not exist. Valid aliases: {valid}."
            raise Refused(404, "NotFoundError", message, "model")
        return body

    def _task(self, request: web.Request, body: dict[str, Any], prompt: str, default_tokens: int) -> Task:
        model = self._options.answering_name(body.get("model")) or self._options.name
        counted = text.count_tokens(prompt)
        limit = token_limit(body, default_tokens, counted, self._options.max_model_tokens)
        given = next((body[key] for key in ("max_completion_tokens", "max_tokens") if body.get(key)), None)
        if body.get("temperature") == 0 and body.get("seed") is not None:
            generation = Generation(repeat(text.PROBE_ANSWER), counted, 1, "stop")
        else:
            limited = given is not None or default_tokens == DEFAULT_COMPLETION_TOKENS
            generation = Generation(text.tokens(model, prompt), counted, limit, "length" if limited else "stop")
        identifier = request.headers.get("X-Request-Id") or secrets.token_hex(8)
        return Task(model, identifier, int(time.time()), given, generation)

    async def _answer(self, request: web.Request, body: dict[str, Any], dialect: Dialect) -> web.StreamResponse:
        generation = dialect.task.generation
        with self._engine.request(generation):
            if body.get("stream"):
                return await self._stream(request, dialect)
            pieces = []
            while (piece := await self._engine.next_token(generation)) is not None:
                pieces.append(piece)
        return web.json_response(dialect.whole("".join(pieces)))

    async def _stream(self, request: web.Request, dialect: Dialect) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        # As vLLM does, before there is a token: what the engine does not survive from now on is a broken stream.
        await response.prepare(request)
        try:
            async with aclosing(self._events(dialect)) as events:
                async for event in events:
                    await response.write(event)
            await response.write_eof()
        except EngineDead:
            if request.transport is not None:
                request.transport.close()
        return response

    async def _events(self, dialect: Dialect) -> AsyncGenerator[bytes, None]:
        generation = dialect.task.generation
        pieces = []
        for event in dialect.at_once():
            yield event
        try:
            piece = await self._engine.next_token(generation)
            for event in dialect.begin():
                yield event
            while piece is not None:
                pieces.append(piece)
                yield dialect.token(piece)
                if not self._engine.timings.token_seconds:
                    await asyncio.sleep(0)
                piece = await self._engine.next_token(generation)
        except EngineDead:
            if not (last := dialect.death()):
                raise
            yield last
            return
        for event in dialect.end("".join(pieces)):
            yield event


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = required(body, "messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refused(400, "Bad Request", "1 validation error:\n  Input should be a valid list", "body.messages")
    return messages


def _instructed(instructions: object, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages after a system message, if there is one."""
    return [{"content": instructions}, *messages] if instructions else messages


def _wants_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _joined(prompt: object) -> str:
    return " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
