"""GPU leases over HTTP: one is held for as long as the connection is open on which it was asked for."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from aiohttp import web

from llmux.control.bodies import done, json_response, read_body
from llmux.control.waiting import wait_document
from llmux.core.identifiers import VISIBLE_GPUS
from llmux.instances.leased_program import LEASE_VARIABLE
from llmux.runtime.gpu_leases import GpuLeases, HeldLease, LeaseRequest, LeaseState

PRESENCE_SECONDS = 0.2
"""How often to look whether the client is still there: aiohttp does not tell."""
PROGRESS_SECONDS = 1.0
"""How often a client is told at most what it waits for."""
REPEAT_SECONDS = 15.0
"""How often the last line is sent again: a client that has vanished without a word is found out by it."""


class LeaseBody(msgspec.Struct, frozen=True):
    """Body of ``POST /control/leases``; without an amount, all of each GPU."""

    command: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    gpu_memory_mib: Annotated[int, msgspec.Meta(ge=1)] | None = None
    gpus: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    wait_seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None

    def lease_request(self) -> LeaseRequest:
        """The runtime's type for it."""
        # It is shown in terminals and logs.
        command = "".join(character if character.isprintable() else "?" for character in self.command)
        waits, lasts = self.wait_seconds or math.inf, self.max_seconds or math.inf
        return LeaseRequest(command, self.gpu_memory_mib, self.gpus, waits, lasts)


class LeaseRoutes:
    """One method per route."""

    def __init__(self, leases: GpuLeases, visible_gpus: str | None) -> None:
        """``visible_gpus``: llmux's own CUDA_VISIBLE_DEVICES."""
        self._leases = leases
        self._visible_gpus = visible_gpus

    async def ask(self, request: web.Request) -> web.StreamResponse:
        """Answers in lines of JSON, one at each change, and ends with the lease. Closing the connection ends it too."""
        body = await read_body(request, LeaseBody)
        lease = self._leases.ask(body.lease_request())
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
            await response.prepare(request)
            async for line in self._lines(request, lease):
                await response.write(msgspec.json.encode(line) + b"\n")
            return response
        finally:
            self._leases.leave(lease)

    async def list(self, _request: web.Request) -> web.Response:
        return json_response({"gpu_leases": leases_document(self._leases)})

    async def end(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        self._leases.end(number, "the operator has ended it")
        return done(f"GPU lease {number} ends")

    async def _lines(self, request: web.Request, lease: HeldLease) -> AsyncIterator[dict[str, Any]]:
        """What to tell the client, until there is nothing more to tell or it has left."""
        loop = asyncio.get_running_loop()
        told: dict[str, Any] = {}
        told_at = -math.inf
        while request.transport is not None and not request.transport.is_closing():
            lease.changed.clear()
            line = self._line(lease)
            pause = REPEAT_SECONDS if _facts(line) == _facts(told) else PROGRESS_SECONDS
            if line["state"] != told.get("state") or told_at + pause <= loop.time():
                told, told_at = line, loop.time()
                yield line
            if lease.state in (LeaseState.REFUSED, LeaseState.RELEASED):
                return
            try:
                async with asyncio.timeout(PRESENCE_SECONDS):
                    await lease.changed.wait()
            except TimeoutError:
                pass

    def _line(self, lease: HeldLease) -> dict[str, Any]:
        line: dict[str, Any] = {"lease": lease.number, "state": lease.state.value}
        match lease.state:
            case LeaseState.WAITING:
                line["waits"] = _waits(self._leases, lease)
            case LeaseState.HELD:
                program = lease.program
                visible = ",".join(program.devices) or self._visible_gpus
                devices = {} if visible is None else {VISIBLE_GPUS: visible}
                line["environment"] = {LEASE_VARIABLE: program.token, **devices}
                line["stop_seconds"] = program.stop_timeout_seconds
                line["max_seconds"] = None if lease.request.max_seconds == math.inf else lease.request.max_seconds
            case _:
                line |= {"reason": lease.reason, "is_timeout": lease.is_timeout}
        return line


def _waits(leases: GpuLeases, lease: HeldLease) -> dict[str, Any]:
    reason = leases.wait_reason(lease)
    return {"for": "free", "text": "waits until the memory is free"} if reason is None else wait_document(reason)


def _facts(line: dict[str, Any]) -> dict[str, Any]:
    """What is worth a new line: not that another second has passed."""
    return {name: fact for name, fact in line.get("waits", {}).items() if name != "text" and "seconds" not in name}


def leases_document(leases: GpuLeases) -> list[dict[str, Any]]:
    """Every GPU lease that there is: whose, how much, since and until when."""
    return [_entry(leases, lease) for lease in leases.leases()]


def _entry(leases: GpuLeases, lease: HeldLease) -> dict[str, Any]:
    now = leases.now()
    is_waiting = lease.state is LeaseState.WAITING
    return {
        "lease": lease.number,
        "command": lease.request.command,
        "state": lease.state.value,
        "gpu_memory_mib": lease.request.memory_mib,
        "gpus": lease.request.gpus,
        "gpu_mib": dict(leases.gpu_mib(lease)),
        "waits": _waits(leases, lease) if is_waiting else None,
        "asked_seconds_ago": round(now - lease.asked_at, 3),
        "held_seconds": None if lease.held_at is None else round(now - lease.held_at, 3),
        "ends_in_seconds": None if lease.until == math.inf else round(max(0.0, lease.until - now), 3),
        "reason": lease.reason or None,
    }
