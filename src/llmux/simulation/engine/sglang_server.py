"""The simulated SGLang over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web

from llmux.simulation.engine.controls import controls
from llmux.simulation.engine.core import Answer, EngineDead
from llmux.simulation.engine.dialects import Task
from llmux.simulation.engine.front import Endpoint, Front
from llmux.simulation.engine.inference import Inference
from llmux.simulation.engine.kind import Kind, Parts, Service, Spawn
from llmux.simulation.engine.requests import Refused, read_object
from llmux.simulation.engine.sglang import (
    EMPTY,
    SglangOptions,
    SglangPause,
    SimulatedSglang,
    kill_tree,
    parse,
)

UNGUARDED_PREFIXES = ("/health", "/metrics", "/stats", "/control")
"""Everything else needs the key, the control paths too; the last two are ours."""
FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)


def build(parts: Parts) -> Service:
    """An engine behind SGLang's front."""
    assert isinstance(parts.options, SglangOptions)
    engine = SimulatedSglang(
        parts.options, parts.timings, parts.faults, parts.memory, parts.spawn, lambda _: kill_tree(parts.memory)
    )

    async def warm_up() -> None:
        await asyncio.sleep(engine.sglang.warmup_seconds)
        engine.warm = True

    async def stop() -> None:
        engine.exiting = True
        await engine.drained()
        kill_tree(parts.memory)

    parts.spawn(warm_up())
    endpoints = {
        **_information(engine),
        **SglangInference(engine, "sglang").endpoints(),
        **_memory(engine, parts.spawn),
        **_generation(engine),
        **controls(engine),
    }
    front = Front(
        parts.options,
        endpoints,
        is_guarded=lambda path: not path.startswith(UNGUARDED_PREFIXES),
        refuse=_refuse,
    )
    return Service(front.application(), stop, engine)


class SglangInference(Inference):
    """The inference endpoints, whose requests can be aborted by their ``rid``."""

    def _task(self, request: web.Request, body: dict[str, Any], prompt: str, default_tokens: int) -> Task:
        task = super()._task(request, body, prompt, default_tokens)
        assert isinstance(self._engine, SimulatedSglang)
        self._engine.by_identifier[str(body.get("rid") or task.identifier)] = task.generation
        return task

    async def _answer(self, request: web.Request, body: dict[str, Any], dialect: Any) -> web.StreamResponse:
        try:
            return await super()._answer(request, body, dialect)
        finally:
            assert isinstance(self._engine, SimulatedSglang)
            known = self._engine.by_identifier
            for identifier in [one for one, generation in known.items() if generation is dialect.task.generation]:
                del known[identifier]


def _refuse(refused: Refused) -> web.Response:
    """SGLang's errors have no ``error`` around them."""
    return web.json_response({"object": "error", **refused.document["error"]}, status=refused.response.status)


def _answering(call: Callable[[web.Request], Awaitable[Answer]]) -> Endpoint:
    async def endpoint(request: web.Request) -> web.Response:
        answer = await call(request)
        if answer is EMPTY:
            return web.Response()
        return web.json_response(answer.body, status=answer.status)

    return endpoint


def _information(engine: SimulatedSglang) -> dict[str, Endpoint]:
    options = engine.sglang

    async def health_generate(_: web.Request) -> web.Response:
        if engine.exiting or not engine.warm:
            return web.Response(status=503)
        return web.Response(status=200 if await engine.generates() else 503)

    async def health(request: web.Request) -> web.Response:
        engine.healthy()
        if options.health_generates or engine.exiting or not engine.warm:
            return await health_generate(request)
        return web.Response()

    async def model_info(_: web.Request) -> web.Response:
        document = {"model_path": options.model, "tokenizer_path": options.model, "is_generation": True}
        return web.json_response({**document, "weight_version": "default"})

    async def server_info(_: web.Request) -> web.Response:
        arguments = {
            "model_path": options.model,
            "served_model_name": options.name,
            "enable_memory_saver": options.memory_saver,
            "enable_weights_cpu_backup": options.weights_backup,
            "max_running_requests": options.max_running,
            "mem_fraction_static": options.gpu_memory_utilization,
        }
        return web.json_response({**arguments, "internal_states": [{}], "version": options.version})

    return {
        "GET /health": health,
        "GET /health_generate": health_generate,
        "GET /get_model_info": model_info,
        "GET /model_info": model_info,
        "GET /get_server_info": server_info,
        "GET /server_info": server_info,
    }


def _memory(engine: SimulatedSglang, spawn: Spawn) -> dict[str, Endpoint]:
    async def perform(work: Coroutine[Any, Any, Answer]) -> Answer:
        """The scheduler does not notice that a client leaves."""
        answer: Answer = await asyncio.shield(spawn(work))
        return answer

    async def tags_of(request: web.Request) -> list[str]:
        tags = (await read_object(request)).get("tags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise Refused(400, "Bad Request", "1 validation error:\n  Input should be a valid list", "body.tags")
        return tags

    async def release(request: web.Request) -> Answer:
        return await perform(engine.release(await tags_of(request)))

    async def resume(request: web.Request) -> Answer:
        return await perform(engine.resume_memory(await tags_of(request)))

    async def update(request: web.Request) -> Answer:
        path = (await read_object(request)).get("model_path")
        if not isinstance(path, str):
            raise Refused(400, "Bad Request", "1 validation error:\n  Field required", "body.model_path")
        return await perform(engine.update_weights(path))

    async def flush_cache(_: web.Request) -> web.Response:
        return web.Response(text=FLUSHED, status=400 if engine.running or engine.waiting else 200)

    released, resumed, flushed = _answering(release), _answering(resume), flush_cache
    return {
        "GET /release_memory_occupation": released,
        "POST /release_memory_occupation": released,
        "GET /resume_memory_occupation": resumed,
        "POST /resume_memory_occupation": resumed,
        "POST /update_weights_from_disk": _answering(update),
        "GET /flush_cache": flushed,
        "POST /flush_cache": flushed,
    }


def _generation(engine: SimulatedSglang) -> dict[str, Endpoint]:
    async def pause(request: web.Request) -> Answer:
        mode = (await read_object(request)).get("mode", "abort")
        if mode not in list(SglangPause):
            raise Refused(400, "Bad Request", "1 validation error:\n  Input should be a mode", "body.mode")
        await engine.pause_generation(SglangPause(mode))
        return Answer(200, {"message": "Generation paused successfully.", "status": "ok"})

    async def resume(request: web.Request) -> Answer:
        await read_object(request)
        engine.resume()
        if not engine.lives():
            raise EngineDead
        return Answer(200, {"message": "Generation continued successfully.", "status": "ok"})

    async def abort(request: web.Request) -> Answer:
        body = await read_object(request)
        if body.get("abort_all"):
            engine.abort_all()
        elif rid := body.get("rid"):
            engine.abort_by_identifier(str(rid))
        return EMPTY

    return {
        "POST /pause_generation": _answering(pause),
        "POST /continue_generation": _answering(resume),
        "POST /abort_request": _answering(abort),
    }


SGLANG = Kind(parse, build, worker_name="sglang::schedul")
