"""The simulated vLLM over HTTP: health, lifecycle, and controls for tests."""

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from llmux.simulation.engine.controls import controls
from llmux.simulation.engine.core import Answer, PauseMode
from llmux.simulation.engine.faults import Fault
from llmux.simulation.engine.front import Endpoint, Front
from llmux.simulation.engine.inference import Inference
from llmux.simulation.engine.kind import Kind, Parts, Service, Spawn
from llmux.simulation.engine.options import parse
from llmux.simulation.engine.requests import Refused, read_object
from llmux.simulation.engine.vllm import SimulatedVllm

VERSION = "0.32.0"
"""The version of vLLM that is imitated."""

DEATH_TO_EXIT_SECONDS = 0.5
"""How long the HTTP server outlives its engine core, as vLLM's does."""
FAILURES_SENT_SECONDS = 0.05
"""Time for the error responses to reach the clients before the process exits."""


def build(parts: Parts) -> Service:
    """An engine behind vLLM's front."""
    loop = asyncio.get_running_loop()

    def on_death(at_once: bool) -> None:
        if at_once:
            os._exit(1)
        if not parts.options.stays_when_dead:
            loop.call_later(DEATH_TO_EXIT_SECONDS, os._exit, 0)

    engine = SimulatedVllm(parts.options, parts.timings, parts.faults, parts.memory, on_death)

    async def stop() -> None:
        if Fault.SIGTERM_HANGS in engine.faults:
            await engine.pause(PauseMode.KEEP)
            await engine.idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(engine.options.shutdown_timeout_seconds):
                await engine.idle()
        if engine.running or engine.waiting:
            engine.die("shutdown")
            await asyncio.sleep(FAILURES_SENT_SECONDS)

    return Service(application(engine, parts.spawn), stop, engine)


def application(engine: SimulatedVllm, spawn: Spawn) -> web.Application:
    """All endpoints."""
    endpoints = _information(engine) | Inference(engine).endpoints()
    endpoints |= controls(engine, lambda: {"sleep_level": engine.level})
    if engine.options.development_mode:
        endpoints |= _lifecycle(engine, spawn) | _states(engine)
    return Front(engine.options, endpoints).application()


def _information(engine: SimulatedVllm) -> dict[str, Endpoint]:
    async def health(_: web.Request) -> web.Response:
        return web.Response(status=200 if engine.healthy() else 503)

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def load(_: web.Request) -> web.Response:
        return web.json_response({"server_load": engine.running + engine.waiting})

    async def metrics(_: web.Request) -> web.Response:
        label = f'{{model_name="{engine.options.name}",engine="0"}}'
        state = ("awake", "weights_offloaded", "discard_all")[engine.level]
        lines = [
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{label} {engine.running}.0",
            "# TYPE vllm:num_requests_waiting gauge",
            f"vllm:num_requests_waiting{label} {engine.waiting}.0",
            "# TYPE vllm:engine_sleep_state gauge",
            f'vllm:engine_sleep_state{{engine="0",sleep_state="{state}"}} 1.0',
        ]
        return web.Response(text="\n".join(lines) + "\n")

    return {
        "GET /health": health,
        "GET /ping": health,
        "POST /ping": health,
        "GET /version": version,
        "GET /load": load,
        "GET /metrics": metrics,
    }


def _lifecycle(engine: SimulatedVllm, spawn: Spawn) -> dict[str, Endpoint]:
    async def perform(work: Coroutine[Any, Any, Answer]) -> web.Response:
        answer = await asyncio.shield(spawn(work))
        return web.json_response(answer.body, status=answer.status)

    async def sleep(request: web.Request) -> web.Response:
        level = request.query.get("level", "1")
        if level not in ("0", "1", "2"):
            raise Refused(400, "BadRequestError", f"Invalid sleep level {level}: must be 0, 1 or 2")
        return await perform(
            engine.sleep(int(level), _pause_mode(request), clears_connector=_clears_connector(request))
        )

    async def release_kv_cache_memory(_: web.Request) -> web.Response:
        return await perform(engine.release_kv_cache())

    async def wake_up(request: web.Request) -> web.Response:
        return await perform(engine.wake(request.query.getall("tags", [])))

    async def collective_rpc(request: web.Request) -> web.Response:
        method = (await read_object(request)).get("method")
        if not isinstance(method, str):
            raise Refused(400, "BadRequestError", "Missing 'method' in request body")
        return await perform(engine.call_workers(method))

    async def pause(request: web.Request) -> web.Response:
        await engine.suspend(_pause_mode(request), clears_connector=_clears_connector(request))
        return web.json_response({"status": "paused"})

    async def resume(_: web.Request) -> web.Response:
        engine.resume()
        return web.json_response({"status": "resumed"})

    return {
        "POST /sleep": sleep,
        "POST /wake_up": wake_up,
        **({} if Fault.OLD_SLEEP in engine.faults else {"POST /release_kv_cache_memory": release_kv_cache_memory}),
        "POST /collective_rpc": collective_rpc,
        "POST /pause": pause,
        "POST /resume": resume,
    }


def _states(engine: SimulatedVllm) -> dict[str, Endpoint]:
    async def is_sleeping(_: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": engine.sleeping})

    async def is_paused(_: web.Request) -> web.Response:
        return web.json_response({"is_paused": engine.paused})

    async def reset_prefix_cache(_: web.Request) -> web.Response:
        return web.json_response({"success": not engine.running})

    return {
        "GET /is_sleeping": is_sleeping,
        "GET /is_paused": is_paused,
        "POST /reset_prefix_cache": reset_prefix_cache,
    }


def _pause_mode(request: web.Request) -> PauseMode:
    try:
        return PauseMode(request.query.get("mode", "abort"))
    except ValueError:
        raise Refused(400, "BadRequestError", "Invalid mode: must be abort, wait or keep") from None


def _clears_connector(request: web.Request) -> bool:
    """As vllm-project/vllm#57810 has it; to versions without that, the parameter means nothing."""
    return request.query.get("clear_connector_cache", "true") != "false"


VLLM = Kind(parse, build, binds_first=True, worker_name="VLLM::Worker")
