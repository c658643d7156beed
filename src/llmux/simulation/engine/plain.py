"""Any OpenAI-compatible server that does one thing: it loads, then listens, and can only be stopped."""

import argparse
import base64
import os
import time
from collections.abc import Mapping, Sequence
from itertools import repeat

from aiohttp import web

from llmux.simulation.engine import text
from llmux.simulation.engine.controls import controls
from llmux.simulation.engine.core import DEAD_ERROR, EngineDead, Generation, SimulatedEngine
from llmux.simulation.engine.faults import Faults
from llmux.simulation.engine.front import Endpoint, Front
from llmux.simulation.engine.inference import Inference
from llmux.simulation.engine.kind import Kind, Parts, Service
from llmux.simulation.engine.options import EngineOptions, Timings
from llmux.simulation.engine.own_flags import OwnFlags, gather
from llmux.simulation.engine.requests import read_object, required

MEMORY_SHARE = 0.1


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[EngineOptions, Timings, Faults]:
    """Read ``--model``, where to listen, and our own flags; exits with code 2 on anything else."""
    parser = argparse.ArgumentParser(prog="llmux-sim-engine --sim-kind embeddings|images", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any; it is printed as READY PORT")
    parser.add_argument("--api-key")
    flags = OwnFlags(parser, environment)
    flags.add_common()
    flags.add_memory(f"{MEMORY_SHARE:.0%} of the ledger's capacity".replace("%", "%%"))
    given = parser.parse_args(arguments)
    given.served_names = (given.model,)
    given.api_keys = (given.api_key,) if given.api_key else ()
    given.gpu_memory_utilization = MEMORY_SHARE
    return gather(given, EngineOptions), gather(given, Timings), flags.faults(given)


def build_embeddings(parts: Parts) -> Service:
    """A server of ``/v1/embeddings``."""
    engine = _engine(parts)
    path = "POST /v1/embeddings"
    return _service(engine, {path: Inference(engine).endpoints()[path]})


def build_images(parts: Parts) -> Service:
    """A server of ``/v1/images/generations``, each of which takes the time to the first token."""
    engine = _engine(parts)

    async def generate(request: web.Request) -> web.Response:
        body = await read_object(request)
        prompt, count = str(required(body, "prompt")), int(body.get("n") or 1)
        generation = Generation(repeat(""), text.count_tokens(prompt), 1, "stop")
        try:
            with engine.request(generation):
                await engine.next_token(generation)
        except EngineDead:
            return web.json_response(DEAD_ERROR, status=500)
        picture = base64.b64encode(text.image(engine.options.name, prompt)).decode()
        return web.json_response({"created": int(time.time()), "data": [{"b64_json": picture}] * count})

    return _service(engine, {"POST /v1/images/generations": generate})


def _engine(parts: Parts) -> SimulatedEngine:
    return SimulatedEngine(parts.options, parts.timings, parts.faults, parts.memory, lambda _: os._exit(1))


def _service(engine: SimulatedEngine, endpoints: Mapping[str, Endpoint]) -> Service:
    async def health(_: web.Request) -> web.Response:
        return web.Response(status=200 if engine.healthy() else 503)

    models = "GET /v1/models"
    information = {"GET /health": health, models: Inference(engine, "owner").endpoints()[models]}
    front = Front(engine.options, {**information, **endpoints, **controls(engine)})
    return Service(front.application(), engine.drained, engine)


EMBEDDINGS = Kind(parse, build_embeddings)
IMAGES = Kind(parse, build_images)
