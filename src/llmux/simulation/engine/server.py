"""The simulated vLLM over HTTP: health, lifecycle, and controls for tests."""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

from aiohttp import web

from llmux.simulation.engine.core import Answer, PauseMode
from llmux.simulation.engine.faults import Fault
from llmux.simulation.engine.front import Endpoint, Front
from llmux.simulation.engine.inference import Inference
from llmux.simulation.engine.kind import Kind, Parts, Service, Spawn
from llmux.simulation.engine.options import parse
from llmux.simulation.engine.requests import MAX_BODY_BYTES, Refused, read_object
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
    endpoints = _information(engine) | Inference(engine).endpoints() | _controls(engine)
    if engine.options.development_mode:
        endpoints |= _lifecycle(engine, spawn)
    front = Front(engine.options, {route: _refusing(endpoint) for route, endpoint in endpoints.items()})
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_route("*", "/{tail:.*}", front.handle)
    app.on_response_prepare.append(front.add_headers)
    return app


def _refusing(endpoint: Endpoint) -> Endpoint:
    async def refusing(request: web.Request) -> web.StreamResponse:
        try:
            return await endpoint(request)
        except Refused as refused:
            return refused.response

    return refusing


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

    async def stats(_: web.Request) -> web.Response:
        document = {
            "model": engine.options.name,
            "sleeping": engine.sleeping,
            "sleep_level": engine.level,
            "running": engine.running,
            "waiting": engine.waiting,
            **asdict(engine.counters),
        }
        return web.json_response(document)

    return {
        "GET /health": health,
        "GET /ping": health,
        "POST /ping": health,
        "GET /version": version,
        "GET /load": load,
        "GET /metrics": metrics,
        "GET /stats": stats,
    }


def _lifecycle(engine: SimulatedVllm, spawn: Spawn) -> dict[str, Endpoint]:
    async def perform(work: Coroutine[Any, Any, Answer]) -> web.Response:
        answer = await asyncio.shield(spawn(work))
        return web.json_response(answer.body, status=answer.status)

    async def sleep(request: web.Request) -> web.Response:
        level = request.query.get("level", "1")
        if level not in ("0", "1", "2"):
            raise Refused(400, "BadRequestError", f"Invalid sleep level {level}: must be 0, 1 or 2")
        return await perform(engine.sleep(int(level), _pause_mode(request)))

    async def wake_up(request: web.Request) -> web.Response:
        return await perform(engine.wake(request.query.getall("tags", [])))

    async def collective_rpc(request: web.Request) -> web.Response:
        method = (await read_object(request)).get("method")
        if not isinstance(method, str):
            raise Refused(400, "BadRequestError", "Missing 'method' in request body")
        return await perform(engine.call_workers(method))

    async def pause(request: web.Request) -> web.Response:
        await engine.pause(_pause_mode(request))
        return web.json_response({"status": "paused"})

    async def resume(_: web.Request) -> web.Response:
        engine.resume()
        return web.json_response({"status": "resumed"})

    async def is_sleeping(_: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": engine.sleeping})

    async def is_paused(_: web.Request) -> web.Response:
        return web.json_response({"is_paused": engine.paused})

    async def reset_prefix_cache(_: web.Request) -> web.Response:
        return web.json_response({"success": not engine.running})

    return {
        "POST /sleep": sleep,
        "POST /wake_up": wake_up,
        "POST /collective_rpc": collective_rpc,
        "POST /pause": pause,
        "POST /resume": resume,
        "GET /is_sleeping": is_sleeping,
        "GET /is_paused": is_paused,
        "POST /reset_prefix_cache": reset_prefix_cache,
    }


def _pause_mode(request: web.Request) -> PauseMode:
    try:
        return PauseMode(request.query.get("mode", "abort"))
    except ValueError:
        raise Refused(400, "BadRequestError", "Invalid mode: must be abort, wait or keep") from None


def _controls(engine: SimulatedVllm) -> dict[str, Endpoint]:
    def control(apply: Callable[[dict[str, Any]], None]) -> Endpoint:
        async def endpoint(request: web.Request) -> web.Response:
            try:
                apply(json.loads(await request.read()))
            except (KeyError, TypeError, ValueError) as error:
                raise Refused(400, "BadRequestError", f"{type(error).__name__}: {error}") from None
            return web.Response()

        return endpoint

    def switch(fault: Fault) -> Endpoint:
        return control(lambda body: engine.faults.switch(fault, bool(body["enabled"])))

    def set_latency(body: dict[str, Any]) -> None:
        engine.timings.first_token_seconds = float(body["latency_ms"]) / 1000
        engine.timings.token_seconds = float(body.get("token_ms", engine.timings.token_seconds * 1000)) / 1000

    def set_sleep_delay(body: dict[str, Any]) -> None:
        engine.timings.sleep_seconds = float(body["delay_ms"]) / 1000

    def die(body: dict[str, Any]) -> None:
        if body.get("how", "engine") not in ("engine", "exit"):
            raise ValueError("'how' is engine or exit")
        engine.die("asked to die", at_once=body.get("how") == "exit")

    def die_after_tokens(body: dict[str, Any]) -> None:
        engine.faults.switch(Fault.DIE_AFTER_TOKENS, True, str(int(body["tokens"])))

    return {
        "POST /control/fail-sleep": switch(Fault.SLEEP_500),
        "POST /control/fail-wake": switch(Fault.WAKE_500),
        "POST /control/fail-reload": switch(Fault.RELOAD_500),
        "POST /control/hang-wake": switch(Fault.WAKE_HANG),
        "POST /control/die-on-request": switch(Fault.DIE_ON_REQUEST),
        "POST /control/sleep-delay": control(set_sleep_delay),
        "POST /control/latency": control(set_latency),
        "POST /control/die": control(die),
        "POST /control/die-after-tokens": control(die_after_tokens),
    }


VLLM = Kind(parse, build, binds_first=True, worker_name="VLLM::Worker")
