"""One model's engine without a server around it, for the commands that try it out."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import aiohttp

from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.core.states import Asleep, Cold
from llmux.engines.checkpoint_store import CheckpointStore
from llmux.engines.control_calls import ControlCallFailed, EngineEndpoints
from llmux.engines.instance import Instance
from llmux.errors import LlmuxError, ModelNotFound
from llmux.gpus.memory import GpuHeadroom, total_used_mib
from llmux.hosts.local import find_descendants, held_mib
from llmux.server.build import build_headroom, engine_specs
from llmux.server.warmup import probe

Tell: TypeAlias = Callable[[str], None]
"""Told what is being done now, for the operator."""


class ProbeFailed(LlmuxError):
    """An engine that runs does not answer a small question."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine does not answer: {reason}")


@dataclass(frozen=True, slots=True)
class Memory:
    """What is used of the GPUs, None where that cannot be read, and what the engine's processes hold of the host."""

    gpu_mib: int | None
    host_mib: int


@dataclass(frozen=True, slots=True)
class StandaloneEngine:
    """The engine and what is asked about it."""

    instance: Instance
    endpoints: EngineEndpoints
    room: GpuHeadroom

    async def ask(self) -> str:
        """The answer to the probe; raises ProbeFailed."""
        try:
            return await probe(self.endpoints, self.instance.spec.served_names[0])
        except ControlCallFailed as failure:
            raise ProbeFailed(str(failure)) from failure

    async def measure(self) -> Memory:
        """Memory as it is now."""
        gpus = await self.room.read()
        shim = self.instance.shim_pid
        host_mib = 0 if shim is None else held_mib(find_descendants(shim))
        return Memory(total_used_mib(gpus) if gpus else None, host_mib)

    def other_than(self, eviction: Eviction, residency: Asleep | Cold) -> str | None:
        """Why the engine left in another way than it should; None where it did as it was told."""
        expected = Asleep(eviction) if eviction.keeps_process else Cold()
        if residency == expected:
            return None
        return self.instance.fallback_reason or f"the engine left by {residency} instead"


@asynccontextmanager
async def open_standalone(
    settings: Settings, model: str, *, images: CheckpointStore | None
) -> AsyncIterator[StandaloneEngine]:
    """The model's engine without a server around it, not started; whatever it is in the end, it is ended.

    Raises ModelNotFound.
    """
    if model not in settings.models:
        raise ModelNotFound(model, list(settings.models))
    spec = engine_specs(settings)[model]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
        endpoints = EngineEndpoints(session, spec.port, spec.api_key)
        room = build_headroom(settings, model)
        instance = Instance(spec, endpoints, lambda reason: None, images=images, room=room)
        try:
            yield StandaloneEngine(instance, endpoints, room)
        finally:
            instance.interrupt("llmux is ending")
            await instance.end()
