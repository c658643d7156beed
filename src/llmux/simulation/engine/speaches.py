"""speaches, a server of speech: its models come by any request, and leave by a call or after a time without one."""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiohttp import web

from llmux.simulation.engine import text
from llmux.simulation.engine.core import log_out_of_memory
from llmux.simulation.engine.faults import Faults
from llmux.simulation.engine.front import Endpoint
from llmux.simulation.engine.kind import Kind, Parts, Service
from llmux.simulation.engine.options import EngineOptions, Timings
from llmux.simulation.engine.own_flags import OwnFlags, gather
from llmux.simulation.engine.requests import MAX_BODY_BYTES
from llmux.simulation.ledger import Ledger, LedgerFull

FOR_EVER = -1.0


@dataclass(frozen=True, slots=True)
class SpeachesOptions(EngineOptions):
    """What a simulated speaches is started with beside what every engine is."""

    models: Mapping[str, int] = field(default_factory=dict)
    """The memory in MiB of each model that was downloaded, by its name."""
    ttl_seconds: float = 300.0


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[SpeachesOptions, Timings, Faults]:
    """Read where to listen, speaches' variable ``STT_MODEL_TTL``, and our own flags; exits with code 2 on others."""
    parser = argparse.ArgumentParser(prog="llmux-sim-engine --sim-kind speaches", description=__doc__)
    parser.add_argument("--host", default=environment.get("UVICORN_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=environment.get("UVICORN_PORT", "8000"), help="0: any")
    flags = OwnFlags(parser, environment)
    flags.add_common()
    flags.add_memory("--sim-models says how much for each model")
    flags.add("--sim-models", "models", "LIST", "", "NAME=MIB,... of the models that were downloaded")
    flags.add("--sim-load-ms", "wake_seconds", "MS", "0", "duration of loading a model (0)")
    given = parser.parse_args(arguments)
    pairs = (pair.rpartition("=") for pair in given.models.split(",") if pair)
    try:
        given.models = {name: int(mib) for name, _, mib in pairs}
        given.ttl_seconds = float(environment.get("STT_MODEL_TTL", "300"))
    except ValueError as error:
        parser.error(str(error))
    given.model, given.served_names = "speaches", ("speaches",)
    return gather(given, SpeachesOptions), gather(given, Timings), flags.faults(given)


@dataclass(slots=True)
class Loaded:
    """A model in memory."""

    uses: int = 0
    timer: asyncio.TimerHandle | None = None


class Models:
    """The models that are loaded, in the memory of this process, which keeps its context of the GPU."""

    def __init__(self, options: SpeachesOptions, timings: Timings) -> None:
        self.options = options
        self.loaded: dict[str, Loaded] = {}
        self._timings = timings
        self._loading = asyncio.Lock()

    async def load(self, name: str) -> Loaded:
        """Load a model unless it is loaded; raises LedgerFull."""
        async with self._loading:
            if name not in self.loaded:
                self._hold({*self.loaded, name})
                try:
                    await asyncio.sleep(self._timings.wake_seconds)
                except asyncio.CancelledError:
                    self._hold(set(self.loaded))
                    raise
                self.loaded[name] = Loaded()
                self._expire_later(name)
            return self.loaded[name]

    def unload(self, name: str) -> None:
        """Free a loaded model's memory."""
        model = self.loaded.pop(name)
        if model.timer is not None:
            model.timer.cancel()
        self._hold(set(self.loaded))

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[None]:
        """Have a model loaded, and not unloaded, during the block; raises LedgerFull."""
        model = await self.load(name)
        model.uses += 1
        try:
            yield
        finally:
            model.uses -= 1
            self._expire_later(name)

    def _expire_later(self, name: str) -> None:
        model, seconds = self.loaded[name], self.options.ttl_seconds
        if model.timer is not None:
            model.timer.cancel()
        if seconds != FOR_EVER:
            model.timer = asyncio.get_running_loop().call_later(seconds, self._expire, name)

    def _expire(self, name: str) -> None:
        if name in self.loaded and not self.loaded[name].uses:
            self.unload(name)

    def _hold(self, names: set[str]) -> None:
        if self.options.ledger_path is not None:
            mib = self.options.residue_mib + sum(self.options.models[name] for name in names)
            Ledger(self.options.ledger_path).allocate(os.getpid(), mib, self.options.name)


def build(parts: Parts) -> Service:
    """A server without a loaded model."""
    assert isinstance(parts.options, SpeachesOptions)
    models = Models(parts.options, parts.timings)
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    for route, endpoint in {**_control(models), **_speech(models, parts.timings)}.items():
        method, path = route.split(" ")
        application.router.add_route(method, path, endpoint)

    async def stop() -> None:
        """It cuts off what runs."""

    return Service(application, stop, None)


def _control(models: Models) -> dict[str, Endpoint]:
    async def health(_: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def listed(_: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "owned_by": "owner"} for name in models.options.models]
        return web.json_response({"object": "list", "data": data})

    async def loaded(_: web.Request) -> web.Response:
        return web.json_response({"models": list(models.loaded)})

    async def load(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in models.options.models:
            return _detail(404, f"Model '{name}' is not installed locally.")
        if name in models.loaded:
            return _detail(409, f"Model '{name}' is already loaded.")
        try:
            await models.load(name)
        except LedgerFull as full:
            return _out_of_memory(full)
        return _detail(201, f"Model '{name}' loaded.")

    async def unload(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in models.loaded:
            return _detail(404, f"Model '{name}' is not loaded.")
        if models.loaded[name].uses:
            return _detail(409, f"Model '{name}' is in use.")
        models.unload(name)
        return _detail(200, f"Model '{name}' unloaded.")

    return {
        "GET /health": health,
        "GET /v1/models": listed,
        "GET /api/ps": loaded,
        "POST /api/ps/{name:.+}": load,
        "DELETE /api/ps/{name:.+}": unload,
    }


def _speech(models: Models, timings: Timings) -> dict[str, Endpoint]:
    async def answer(name: str, response: web.Response) -> web.Response:
        if name not in models.options.models:
            return _detail(404, f"Model '{name}' is not installed locally.")
        try:
            async with models.use(name):
                await asyncio.sleep(timings.first_token_seconds)
        except LedgerFull as full:
            return _out_of_memory(full)
        return response

    async def transcribe(request: web.Request) -> web.Response:
        form = await request.post()
        name, upload = str(form.get("model", "")), form.get("file")
        if not isinstance(upload, web.FileField):
            return _detail(422, "Field required: file")
        with upload.file as file:
            heard = text.transcript(name, file.read())
        return await answer(name, web.json_response({"text": heard}))

    async def speak(request: web.Request) -> web.Response:
        body: dict[str, object] = {}
        with suppress(ValueError):
            body = await request.json()
        name, words = str(body.get("model")), body.get("input")
        if not isinstance(words, str):
            return _detail(422, "Field required: input")
        sound = text.expected_text(name, words).encode()
        return await answer(name, web.Response(body=sound, content_type="audio/mpeg"))

    return {
        "POST /v1/audio/transcriptions": transcribe,
        "POST /v1/audio/translations": transcribe,
        "POST /v1/audio/speech": speak,
    }


def _detail(status: int, detail: str) -> web.Response:
    return web.json_response({"detail": detail}, status=status)


def _out_of_memory(full: LedgerFull) -> web.Response:
    log_out_of_memory(full)
    return _detail(500, "CUDA failed with error out of memory")


SPEACHES = Kind(parse, build, loads_at_start=False)
