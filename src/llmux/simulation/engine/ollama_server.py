"""The simulated Ollama over HTTP."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from llmux.simulation.engine import text
from llmux.simulation.engine.core import EngineDead, Generation
from llmux.simulation.engine.front import Endpoint
from llmux.simulation.engine.inference import Inference
from llmux.simulation.engine.kind import Kind, Parts, Service
from llmux.simulation.engine.ollama import (
    FOR_EVER,
    ModelNotFound,
    OllamaOptions,
    Runner,
    Runners,
    ServerBusy,
    base_name,
    parse,
)
from llmux.simulation.engine.requests import MAX_BODY_BYTES

VERSION = "0.12.6"
OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
BUSY = "server busy, please try again. maximum pending requests exceeded"
MIB = 1 << 20


def build(parts: Parts) -> Service:
    """A server without a loaded model."""
    assert isinstance(parts.options, OllamaOptions)
    server = Ollama(Runners(parts.options, parts.timings, parts.faults, parts.spawn))

    async def stop() -> None:
        """Its runners end with it."""

    application = web.Application(client_max_size=MAX_BODY_BYTES)
    for route, endpoint in server.endpoints().items():
        method, path = route.split(" ")
        application.router.add_route(method, path, endpoint)
    return Service(application, stop, None)


class Ollama:
    """The endpoints."""

    def __init__(self, runners: Runners) -> None:
        self._runners = runners

    def endpoints(self) -> dict[str, Endpoint]:
        """By method and path."""
        openai = {f"POST {path}": _failing_in(_openai_error, self._openai(path)) for path in OPENAI_PATHS}
        return openai | {
            "GET /": _saying("Ollama is running"),
            "GET /api/version": _answering({"version": VERSION}),
            "GET /api/tags": self._tags,
            "GET /api/ps": self._ps,
            "GET /v1/models": self._models,
            "POST /api/generate": _failing_in(_own_error, self._generate),
            "POST /api/chat": _failing_in(_own_error, self._chat),
            "POST /api/embed": _failing_in(_own_error, self._embed),
        }

    def _openai(self, path: str) -> Endpoint:
        async def endpoint(request: web.Request) -> web.StreamResponse:
            name = str((await _read(request)).get("model"))
            async with self._runners.use(name) as runner:
                return await Inference(runner.engine).endpoints()[f"POST {path}"](request)

        return endpoint

    async def _models(self, _: web.Request) -> web.Response:
        shared = {"object": "model", "created": int(time.time()), "owned_by": "library"}
        return web.json_response({"object": "list", "data": [{"id": name, **shared} for name in self._pulled()]})

    async def _tags(self, _: web.Request) -> web.Response:
        models = self._runners.options.models
        return web.json_response({"models": [_described(name, models[base_name(name)]) for name in self._pulled()]})

    def _pulled(self) -> list[str]:
        return [_full_name(name) for name in self._runners.options.models]

    async def _ps(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [_loaded(runner) for runner in self._runners.loaded.values()]})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        prompt = str(body.get("prompt") or "")
        return await self._answer(request, body, prompt, lambda said: {"response": said})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _read(request)
        prompt = text.chat_prompt(body.get("messages") or [])
        return await self._answer(
            request, body, prompt, lambda said: {"message": {"role": "assistant", "content": said}}
        )

    async def _answer(
        self, request: web.Request, body: dict[str, Any], prompt: str, said: Callable[[str], dict[str, Any]]
    ) -> web.StreamResponse:
        name, keep = str(body.get("model")), body.get("keep_alive")
        if not prompt and keep is not None and keep in (0, "0", "0s"):
            return self._unload(name, said)
        async with self._runners.use(name, keep) as runner:
            head = {"model": name, "created_at": _now()}
            if not prompt:
                return web.json_response({**head, **said(""), "done": True, "done_reason": "load"})
            pieces = _pieces(runner, prompt, (body.get("options") or {}).get("num_predict"))
            if body.get("stream") is False:
                answer = "".join([piece async for piece in pieces])
                return web.json_response({**head, **said(answer), "done": True, "done_reason": "stop"})
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            async for piece in pieces:
                await response.write(_line({**head, **said(piece), "done": False}))
            await response.write(_line({**head, **said(""), "done": True, "done_reason": "stop"}))
            await response.write_eof()
            return response

    def _unload(self, name: str, said: Callable[[str], dict[str, Any]]) -> web.Response:
        """Answers at once, whether or not requests still keep the model."""
        if base_name(name) not in self._runners.options.models:
            raise ModelNotFound(name)
        self._runners.expire(name)
        head = {"model": name, "created_at": _now()}
        return web.json_response({**head, **said(""), "done": True, "done_reason": "unload"})

    async def _embed(self, request: web.Request) -> web.Response:
        body = await _read(request)
        name, given = str(body.get("model")), body.get("input") or []
        inputs = given if isinstance(given, list) else [given]
        async with self._runners.use(name, body.get("keep_alive")) as runner:
            vectors = [text.embedding(runner.name, str(one)) for one in inputs]
        return web.json_response({"model": name, "embeddings": vectors})


async def _pieces(runner: Runner, prompt: str, limit: int | None) -> AsyncIterator[str]:
    tokens = text.tokens(runner.name, prompt)
    generation = Generation(tokens, text.count_tokens(prompt), limit or text.DEFAULT_CHAT_TOKENS, "stop")
    with runner.engine.request(generation):
        while (piece := await runner.engine.next_token(generation)) is not None:
            yield piece


async def _read(request: web.Request) -> dict[str, Any]:
    """The body's JSON object, whatever its content type says; raises ValueError."""
    body = json.loads(await request.read())
    if not isinstance(body, dict):
        raise ValueError("json: cannot unmarshal into Go value of type api.GenerateRequest")
    return body


def _failing_in(error: Callable[[int, str], web.Response], endpoint: Endpoint) -> Endpoint:
    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await endpoint(request)
        except ModelNotFound as missing:
            return error(404, f"model '{missing}' not found")
        except ServerBusy:
            return error(503, BUSY)
        except EngineDead:
            return error(500, "llama runner process has terminated: exit status 2")
        except ValueError as wrong:
            return error(400, str(wrong))

    return answer


def _own_error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _openai_error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "not_found_error" if status == 404 else "api_error"}
    return web.json_response({"error": {**error, "param": None, "code": None}}, status=status)


def _saying(words: str) -> Endpoint:
    async def endpoint(_: web.Request) -> web.Response:
        return web.Response(text=words)

    return endpoint


def _answering(document: dict[str, Any]) -> Endpoint:
    async def endpoint(_: web.Request) -> web.Response:
        return web.json_response(document)

    return endpoint


def _full_name(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _described(name: str, size_mib: int) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "model": name, "size": size_mib * MIB, "digest": digest, "details": {"format": "gguf"}}


def _loaded(runner: Runner) -> dict[str, Any]:
    left = 3.2e9 if runner.keep_seconds == FOR_EVER else runner.keep_seconds
    if runner.expires_at is not None:
        left = runner.expires_at - asyncio.get_running_loop().time()
    expires = datetime.now(UTC) + timedelta(seconds=left)
    described = _described(_full_name(runner.name), runner.size_mib)
    return {**described, "size_vram": runner.gpu_mib * MIB, "expires_at": expires.isoformat(), "context_length": 4096}


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


OLLAMA = Kind(parse, build, loads_at_start=False)
