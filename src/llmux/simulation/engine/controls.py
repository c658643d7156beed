"""What tests ask of a simulated engine behind the back of its front: what happened to it, and faults."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from aiohttp import web

from llmux.simulation.engine.core import SimulatedEngine
from llmux.simulation.engine.faults import Fault
from llmux.simulation.engine.front import Endpoint
from llmux.simulation.engine.requests import Refused


def controls(engine: SimulatedEngine, more: Callable[[], Mapping[str, object]] = dict) -> dict[str, Endpoint]:
    """``GET /stats``, with what ``more`` adds to it, and ``POST /control/...``."""

    async def stats(_: web.Request) -> web.Response:
        document = {
            "model": engine.options.name,
            "sleeping": engine.sleeping,
            "running": engine.running,
            "waiting": engine.waiting,
            **more(),
            **asdict(engine.counters),
        }
        return web.json_response(document)

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
        "GET /stats": stats,
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
