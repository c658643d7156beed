"""ComfyUI: a queue of prompts, whose requests have ended long before their work has, and a page for people."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from llmux.simulation.engine import text
from llmux.simulation.engine.core import log_out_of_memory
from llmux.simulation.engine.faults import Faults
from llmux.simulation.engine.front import Endpoint
from llmux.simulation.engine.kind import Kind, Parts, Service
from llmux.simulation.engine.memory import TAGS, EngineMemory
from llmux.simulation.engine.options import EngineOptions, Timings
from llmux.simulation.engine.own_flags import OwnFlags, gather
from llmux.simulation.engine.requests import MAX_BODY_BYTES
from llmux.simulation.ledger import Ledger, LedgerFull

WITH_VALUE = ("--base-directory", "--input-directory", "--temp-directory", "--cuda-device")
SWITCHES = ("--disable-auto-launch", "--lowvram", "--normalvram", "--disable-smart-memory", "--cpu", "--multi-user")
"""Flags of ComfyUI's that are accepted and do nothing."""
PAGE = '<!DOCTYPE html><title>ComfyUI</title><script type="module" src="./assets/index.js"></script>'
ASSETS: Mapping[str, tuple[str, str]] = {
    "/": ("text/html", PAGE),
    "/assets/index.js": ("text/javascript", 'new WebSocket("ws://" + location.host + "/ws")\n'),
    "/assets/index.css": ("text/css", "body { margin: 0 }\n"),
}
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ComfyOptions(EngineOptions):
    """What a simulated ComfyUI is started with beside what every engine is."""

    highvram: bool = False
    """Models stay on the GPU whatever ``/free`` says."""
    prompt_seconds: float = 0.5
    output_directory: str | None = None
    """Where the picture of a prompt that is done is written; without one it is only shown."""


def parse(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> tuple[ComfyOptions, Timings, Faults]:
    """Read the arguments of ComfyUI's ``main.py`` and our own; exits with code 2 on a bad value or unknown flag."""
    parser = argparse.ArgumentParser(prog="llmux-sim-engine --sim-kind comfyui", description=__doc__)
    parser.add_argument("--listen", dest="host", nargs="?", default="127.0.0.1", const="0.0.0.0")
    parser.add_argument("--port", type=int, default=8188, help="0: any; it is printed as READY PORT")
    parser.add_argument("--highvram", action="store_true")
    parser.add_argument("--output-directory", help="where pictures are written (default: nowhere)")
    for name in WITH_VALUE:
        parser.add_argument(name, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for name in SWITCHES:
        parser.add_argument(name, dest=argparse.SUPPRESS, help=argparse.SUPPRESS, action="store_true")
    flags = OwnFlags(parser, environment)
    flags.add_common()
    flags.add_memory("half of the ledger's capacity")
    flags.add("--sim-prompt-ms", "prompt_seconds", "MS", "500", "duration of a prompt (500)")
    flags.add("--sim-free-ms", "free_seconds", "MS", "50", "from the end of the prompt until /free has been done (50)")
    given = parser.parse_args(arguments)
    given.model, given.served_names, given.gpu_memory_utilization = "ComfyUI", ("ComfyUI",), 0.5
    return gather(given, ComfyOptions), gather(given, Timings), flags.faults(given)


@dataclass(slots=True)
class Prompt:
    """One piece of work in the queue."""

    number: float
    identifier: str
    workflow: dict[str, Any]
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)

    def entry(self) -> list[Any]:
        """As ``/queue`` and ``/history`` show it."""
        return [self.number, self.identifier, self.workflow, {}, list(self.workflow)]


def picture(workflow: Mapping[str, Any]) -> bytes:
    """What comes of a workflow: the same picture whenever it is asked for, as ComfyUI paints for the same seeds."""
    return text.image("ComfyUI", json.dumps(workflow, sort_keys=True))


def picture_name(identifier: str) -> str:
    """The name of the file in the output directory. ComfyUI numbers its files; this one can be told from the prompt."""
    return f"{identifier}.png"


class ComfyUI:
    """The queue, the worker that takes from it, and the memory of the models."""

    def __init__(self, options: ComfyOptions, timings: Timings, memory: EngineMemory) -> None:
        self.options = options
        self.timings = timings
        self.running: Prompt | None = None
        self.pending: deque[Prompt] = deque()
        self.history: dict[str, Any] = {}
        self.loaded = False
        self._memory = memory
        self._free = False
        self._woken = asyncio.Event()
        self._number = 0

    def put(self, workflow: dict[str, Any]) -> Prompt:
        """Queue a prompt."""
        prompt = Prompt(self._number, str(uuid.uuid4()), workflow)
        self._number += 1
        self.pending.append(prompt)
        self._woken.set()
        return prompt

    def ask_to_free(self) -> None:
        """Have the models unloaded after the running prompt, if there is one; the next one loads them again."""
        self._free = True
        self._woken.set()

    async def work(self) -> None:
        """Take one prompt after the other, for ever."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self.pending:
                self.running = self.pending.popleft()
                status, messages = await self._execute(self.running)
                self._record(self.running, status, messages)
                self.running = None
                await self._obey()
            await self._obey()

    async def _obey(self) -> None:
        if self._free:
            self._free = False
            await asyncio.sleep(self.timings.free_seconds)
            self._unload()

    def _unload(self) -> None:
        if self.loaded and not self.options.highvram:
            self._memory.hold(frozenset(TAGS))
            self.loaded = False

    async def _execute(self, prompt: Prompt) -> tuple[str, list[Any]]:
        """Returns the status, and what the history says beside it."""
        try:
            self._memory.hold(frozenset())
        except LedgerFull as full:
            log_out_of_memory(full)
            self._unload()
            error = {"exception_type": "torch.OutOfMemoryError", "exception_message": f"Allocation on device: {full}"}
            return "error", [["execution_error", error]]
        self.loaded = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(prompt.interrupted.wait(), self.options.prompt_seconds)
            return "error", [["execution_interrupted", {"prompt_id": prompt.identifier}]]
        self._write(prompt)
        return "success", [["execution_success", {"prompt_id": prompt.identifier}]]

    def _write(self, prompt: Prompt) -> None:
        if self.options.output_directory is None:
            return
        file = Path(self.options.output_directory) / picture_name(prompt.identifier)
        unfinished = file.with_suffix(".part")
        unfinished.write_bytes(picture(prompt.workflow))
        # Whoever waits for the file must never see half of it.
        unfinished.rename(file)

    def _record(self, prompt: Prompt, status: str, messages: list[Any]) -> None:
        done = status == "success"
        images = [{"filename": picture_name(prompt.identifier), "subfolder": "", "type": "output"}]
        self.history[prompt.identifier] = {
            "prompt": prompt.entry(),
            "outputs": {node: {"images": images} for node in prompt.workflow} if done else {},
            "status": {"status_str": status, "completed": done, "messages": messages},
        }

    def held_mib(self) -> int:
        """What this process holds on the virtual GPU."""
        return self._memory.allocated_mib


def build(parts: Parts) -> Service:
    """A ComfyUI whose worker runs."""
    assert isinstance(parts.options, ComfyOptions)
    comfy = ComfyUI(parts.options, parts.timings, parts.memory)
    parts.spawn(comfy.work())
    is_ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN

    async def stop() -> None:
        """It has no handler for SIGTERM, so nothing is finished; as the first process of a container it runs on."""
        if is_ignored:
            await asyncio.Event().wait()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    application = web.Application(client_max_size=MAX_BODY_BYTES)
    for route, endpoint in {**_queue(comfy), **_memory(comfy)}.items():
        method, path = route.split(" ")
        application.router.add_route(method, path, endpoint)
        application.router.add_route(method, f"/api{path}", endpoint)
    for path, (content_type, content) in ASSETS.items():
        application.router.add_get(path, _asset(content_type, content))
    return Service(application, stop, None)


def _asset(content_type: str, content: str) -> Endpoint:
    async def asset(_: web.Request) -> web.Response:
        return web.Response(text=content, content_type=content_type)

    return asset


def _queue(comfy: ComfyUI) -> dict[str, Endpoint]:
    async def post_prompt(request: web.Request) -> web.Response:
        workflow = (await request.json()).get("prompt")
        if not isinstance(workflow, dict) or not workflow:
            reason = "no_prompt" if workflow is None else "prompt_no_outputs"
            error = {"type": reason, "message": "No prompt provided", "details": "", "extra_info": {}}
            return web.json_response({"error": error, "node_errors": {}}, status=400)
        prompt = comfy.put(workflow)
        return web.json_response({"prompt_id": prompt.identifier, "number": prompt.number, "node_errors": {}})

    async def get_prompt(_: web.Request) -> web.Response:
        remaining = len(comfy.pending) + (comfy.running is not None)
        return web.json_response({"exec_info": {"queue_remaining": remaining}})

    async def get_queue(_: web.Request) -> web.Response:
        running = [comfy.running.entry()] if comfy.running is not None else []
        return web.json_response({"queue_running": running, "queue_pending": [one.entry() for one in comfy.pending]})

    async def post_queue(request: web.Request) -> web.Response:
        body = await request.json()
        dropped = set(body.get("delete") or ())
        comfy.pending = deque(one for one in comfy.pending if not body.get("clear") and one.identifier not in dropped)
        return web.Response()

    async def history(request: web.Request) -> web.Response:
        identifier = request.match_info.get("identifier")
        shown = comfy.history if identifier is None else {k: v for k, v in comfy.history.items() if k == identifier}
        return web.json_response(shown)

    async def interrupt(_: web.Request) -> web.Response:
        if comfy.running is not None:
            comfy.running.interrupted.set()
        return web.Response()

    async def view(request: web.Request) -> web.Response:
        identifier = request.query.get("filename", "").removesuffix(".png")
        if identifier not in comfy.history:
            return web.Response(status=404)
        _, _, workflow, *_ = comfy.history[identifier]["prompt"]
        return web.Response(body=picture(workflow), content_type="image/png")

    return {
        "POST /prompt": post_prompt,
        "GET /prompt": get_prompt,
        "GET /queue": get_queue,
        "POST /queue": post_queue,
        "GET /history": history,
        "GET /history/{identifier}": history,
        "POST /interrupt": interrupt,
        "GET /view": view,
    }


def _memory(comfy: ComfyUI) -> dict[str, Endpoint]:
    async def free(request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("unload_models") or body.get("free_memory"):
            comfy.ask_to_free()
        return web.Response()

    async def system_stats(_: web.Request) -> web.Response:
        path = comfy.options.ledger_path
        total, unused = 0, 0
        if path is not None:
            snapshot = Ledger(path).snapshot()
            total, unused = snapshot.capacity_mib, snapshot.free_mib
        device = {
            "name": "cuda:0 simulated",
            "type": "cuda",
            "index": 0,
            "vram_total": total * MIB,
            "vram_free": unused * MIB,
            "torch_vram_total": comfy.held_mib() * MIB,
            "torch_vram_free": 0,
        }
        return web.json_response({"system": {"os": "posix", "comfyui_version": "0.3.50"}, "devices": [device]})

    async def websocket(_: web.Request) -> web.Response:
        return web.Response(status=400, text='No WebSocket UPGRADE hdr: None\n Can "Upgrade" only to "WebSocket".')

    return {"POST /free": free, "GET /system_stats": system_stats, "GET /ws": websocket}


COMFYUI = Kind(parse, build, loads_at_start=False)
